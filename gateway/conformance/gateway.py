"""The gateway as other people's clients find it: in the clear and by TLS, in a folder of its own."""

import json
import subprocess
import threading

# Longer than anything takes here, also on a machine that does something else as well.
PATIENCE = 30


class Gateway:
    """Listens at `plain` (port of 127.0.0.1) and, by TLS, at `secure` (port of 127.0.0.2)."""

    def __init__(self, binary, folder, config):
        cert, key = folder / "cert.pem", folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
            + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
            + ["-keyout", str(key), "-out", str(cert)],
            check=True,
            capture_output=True,
        )
        self.root = cert.read_bytes()
        config |= {
            "server": {"access_log": "off"},
            "listeners": [
                "127.0.0.1:0",
                {"address": "127.0.0.2:0", "tls": {"certificates": [{"cert": str(cert), "key": str(key)}]}},
            ],
            "admin": {"address": "127.0.0.1:0"},
        }
        # JSON is YAML, too.
        (folder / "lockgate.yaml").write_text(json.dumps(config))
        self.process = subprocess.Popen(
            [binary, "--log-format", "json", "run", "--config", str(folder / "lockgate.yaml")],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.plain = self.secure = None
        while not (self.plain and self.secure):
            line = self.process.stderr.readline()
            if not line:
                raise SystemExit("error: the gateway does not start")
            said = json.loads(line)
            said = said.get("fields", said)
            if said.get("message") == "listening" and said.get("kind") == "http":
                host, port = said["address"].rsplit(":", 1)
                if host == "127.0.0.1":
                    self.plain = int(port)
                else:
                    self.secure = int(port)
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
