//! The guests by name.

use std::path::PathBuf;

use crate::build;

macro_rules! guests {
    ($($(#[doc = $doc:literal])+ $guest:ident = $name:literal,)+) => {
        /// A guest by what it does. Settings are JSON, as `configure` gets them; `?` marks those that may be left out.
        /// Where there is a `when`, it names a header, and only requests that have it are treated so.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Guest {
            $($(#[doc = $doc])+ $guest,)+
        }

        impl Guest {
            /// Every guest.
            pub const ALL: &[Self] = &[$(Self::$guest,)+];

            /// Its name, as its folder's: `read-set`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$guest => $name,)+
                }
            }
        }
    };
}

guests! {
    /// Library: sets, appends and removes headers on both sides.
    Headers = "headers",
    /// Library: allows and denies by address, user agent and path.
    Access = "access",

    /// Without the SDK and without `configure`: copies the settings' text to `x-settings` on the request.
    Bare = "bare",
    /// Writes headers with bad names and values on either side; each refusal, or `Accepted`, is a value of `x-refused`.
    BadHeader = "bad-header",
    /// Buffers bodies. On the request: `x-body-length`, `x-body-digest` (FNV-1a 64, 16 hexadecimal digits); 403 where
    /// the body has `forbidden` in it; upstream NAME where it begins with a line `upstream:NAME`; `replaced` in its
    /// place where it begins with `replace:`. Adds ` (N bytes)` to the response's body.
    BodyBuffer = "body-buffer",
    /// Streams bodies and puts them into upper case on both sides; logs `request body: N bytes in M chunks`.
    BodyUpper = "body-upper",
    /// A program without any library, in the manner of CGI, that does what `PATH_INFO` says: `/env`, `/echo`, `/length`,
    /// `/sip?MS`, `/sleep?MS`, `/touch?PORT`, `/read?PATH`, `/download?BYTES`, `/events?COUNT`, `/status?STATUS`, `/redirect`, `/exit`, `/no-header` and more. Else it tells
    /// method, path and the variable `VERSION`.
    Cgi = "cgi",
    /// `{"put": {"key", "value"}, "show": {"key", "header"}}`, both optional: shows what is under a key of the context
    /// (`absent`) on either side, then puts a value there.
    Context = "context",
    /// A core module, not a component.
    CoreModule = "core-module",
    /// Declares counters `requests` and `requests_by_method`, histograms `path_bytes` and `path_bytes_by_method`; keeps
    /// `x-count` and `x-last-path` in the key-value store.
    Counter = "counter",
    /// `{"when"?}`: allocates in `on-request` until there is no memory left.
    EatMemory = "eat-memory",
    /// `{"phase"?: "on_request" | …, "reason": "…", "when"?}`: fails with the reason.
    Fail = "fail",
    /// `{"even": 4}`: `configure` complains about odd numbers; sets `x-even` on the request.
    FailingConfigure = "failing-configure",
    /// A `wasi:http` function that does with files what its target says: `/read?PATH`, `/write?PATH`, `/remove?PATH`,
    /// `/make?PATH`, `/list?PATH`, `/link?NAME` (to the folder above), `/preopens`; 403 and the error where it cannot.
    Files = "files",
    /// A `wasi:http` function that does what the path says: `/echo`, `/length`, `/sip?MS`, `/events?COUNT,MS`,
    /// `/download?BYTES`, `/trailers`, `/spin`, `/sleep?MS`, `/memory`, `/handles`, `/trap`, `/vars`, `/touch?PORT`,
    /// `/fetch?AUTHORITY` and more. Else it tells method, target and the
    /// variable `VERSION`.
    Function = "function",
    /// Writes headers that the gateway owns, on either side: `x-refused` is `NAME=Forbidden` or `NAME=Accepted`.
    ForbiddenHeader = "forbidden-header",
    /// A `wasi:http` function that answers `hello`: for benches.
    Hello = "hello",
    /// Sets a header of 100 KiB on either side: `x-refused` is `TooLarge`.
    HugeHeader = "huge-header",
    /// A `wasi:http` function that keeps keys and values by `wasi:keyvalue`: `/count?KEY`, `/get?KEY`, `/set?KEY=VALUE`,
    /// `/list`, `/many?PREFIX=COUNT`, `/swap?KEY=VALUE` and more, in the bucket `default` or below `/in/NAME/`; `/config`
    /// and `/log?TEXT`.
    Keeper = "keeper",
    /// Writes a log line at each level and emits the event `request-seen` with `{"path": …}`.
    LogLines = "log-lines",
    /// `{"url": "…", "body"?: "…"}`: fetches it for each request (`POST` with a body); `x-outbound` is `STATUS BODY` or
    /// `failed`, `x-outbound-error` why, on either side.
    Outbound = "outbound",
    /// A middleware of WASI 0.3: sets `x-middleware-request` on the request and `x-middleware` on the response, both to
    /// the variable `VERSION`. With `x-middleware-does: answer`, `trap`, `trap-after`, `upper` and more, it does that.
    Middleware = "middleware",
    /// Prints `configured` in `configure`, and `stdout: METHOD PATH` and `stderr: METHOD PATH` in `on-request`.
    Println = "println",
    /// Prints by WASI's own streams: `configured` in `configure`, so that it cannot be snapshotted, `requested` and `and
    /// printed` in `on-request`; sets `x-printed` on either side.
    PrintlnConfigure = "println-configure",
    /// Reads `user-agent` and sets `x-read-set` on the request, sets `x-read-set` on the response: for benches.
    ReadSet = "read-set",
    /// `{"when"?}`: uses up the stack in `on-request`.
    Recurse = "recurse",
    /// `{"status"?: 200, "headers"?: {}, "body"?: "", "when"?, "on_body"?: false}`: answers in `on-request`, or in
    /// `on-request-body`; sets `x-respond: passed` on responses that are not its own.
    Respond = "respond",
    /// A service of WASI 0.3 that does what the path says: as [`Self::Function`], with `/pass`, `/read?PATH`,
    /// `/leave-open` and `/error`.
    Service = "service",
    /// `{"duration_ms"?: 2000}`: is busy in `configure` for that long, or for ever; sets `x-slow-configure` on the
    /// response.
    SlowConfigure = "slow-configure",
    /// `{"phase"?: "on_request" | …, "when"?}`: loops for ever.
    Spin = "spin",
    /// `x-instance-count`, on either side: the requests that this instance has seen.
    Stateful = "stateful",
    /// `{"value": "v1", "append"?: false}`: sets or appends `x-tag-request` on the request and `x-tag` on the response.
    Tag = "tag",
    /// Touches all of WASI that the standard library reaches, on either side: `x-wasi` is `env=0,args=0,file=denied,…`.
    TouchWasi = "touch-wasi",
    /// `{"phase": "configure" | "on_request" | …, "when"?}`: traps.
    Trap = "trap",
    /// A filter that imports `example:nowhere/thing@1.0.0`.
    UnknownImport = "unknown-import",
    /// A component that exports `example:elsewhere/arithmetic@1.0.0` alone.
    WrongWorld = "wrong-world",
}

impl Guest {
    /// Those of `filters/library`: what users are given.
    pub const LIBRARY: &[Self] = &[Self::Headers, Self::Access];

    /// Where its component is, built if need be.
    ///
    /// # Panics
    ///
    /// The guests cannot be built; the message is cargo's. For tests, that is: where it may fail, call
    /// [`build`](crate::build) before.
    pub fn path(self) -> PathBuf {
        let built = build::once().unwrap_or_else(|error| panic!("{error}"));
        built.join(format!("{}.wasm", self.name().replace('-', "_")))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use wasmparser::{Parser, Payload};

    use super::*;

    /// The names of a component's imports and exports.
    fn interfaces(guest: Guest) -> (Vec<String>, Vec<String>) {
        let bytes = fs::read(guest.path()).unwrap_or_else(|error| panic!("{}: {error}", guest.name()));
        let (mut imports, mut exports) = (Vec::new(), Vec::new());
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(&bytes) {
            // What is nested has imports and exports of its own, which are nobody's business.
            match payload.expect("a well-formed component") {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) if depth > 0 => depth -= 1,
                Payload::ComponentImportSection(section) if depth == 0 => {
                    imports.extend(section.into_iter().map(|import| import.expect("an import").name.name.to_owned()));
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    exports.extend(section.into_iter().map(|export| export.expect("an export").name.name.to_owned()));
                }
                _ => {}
            }
        }
        exports.sort_unstable();
        (imports, exports)
    }

    fn exports(guest: Guest) -> Vec<String> {
        interfaces(guest).1
    }

    #[test]
    fn every_guest_is_built_and_only_the_core_module_is_no_component() {
        for &guest in Guest::ALL {
            let bytes = fs::read(guest.path()).unwrap_or_else(|error| panic!("{}: {error}", guest.name()));
            assert_eq!(Parser::is_component(&bytes), guest != Guest::CoreModule, "{}", guest.name());
            assert_eq!(Parser::is_core_wasm(&bytes), guest == Guest::CoreModule, "{}", guest.name());
        }
    }

    #[test]
    fn every_folder_is_a_guest() {
        for folder in ["../library", "../fixtures"] {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
            for entry in fs::read_dir(folder).expect("a folder of guests") {
                let name = entry.expect("an entry").file_name();
                assert!(Guest::ALL.iter().any(|guest| name == guest.name()), "{} has no name here", name.display());
            }
        }
    }

    #[test]
    fn a_filter_exports_the_phases_that_it_has_and_no_others() {
        let phase = |name| format!("lockgate:filter/{name}@0.1.0");
        assert_eq!(exports(Guest::Tag), ["configuration", "on-request", "on-response"].map(phase));
        assert_eq!(exports(Guest::Bare), ["on-request"].map(phase));
        assert_eq!(exports(Guest::BodyBuffer), ["configuration", "on-request-body", "on-response-body"].map(phase));
        assert_eq!(exports(Guest::Access), ["configuration", "on-request"].map(phase));
        assert_eq!(exports(Guest::WrongWorld), ["example:elsewhere/arithmetic@1.0.0"]);
        assert_eq!(exports(Guest::Hello), ["wasi:http/incoming-handler@0.2.12"]);
        assert_eq!(exports(Guest::Service), ["wasi:http/handler@0.3.0"]);
        assert_eq!(exports(Guest::Middleware), ["wasi:http/handler@0.3.0"]);
        assert!(matches!(&*exports(Guest::Cgi), [run] if run.starts_with("wasi:cli/run@0.2.")));
    }

    #[test]
    fn a_filter_imports_of_the_contract_what_it_calls() {
        let imports = |guest| {
            let (mut imports, _) = interfaces(guest);
            imports.retain(|name| !name.starts_with("wasi:"));
            imports.sort_unstable();
            imports
        };
        let interface = |name| format!("lockgate:filter/{name}@0.1.0");
        // `log`, since what is printed goes there.
        assert_eq!(imports(Guest::ReadSet), ["log", "request", "response", "types"].map(interface));
        assert_eq!(imports(Guest::UnknownImport), ["example:nowhere/thing@1.0.0", "lockgate:filter/types@0.1.0"]);
    }
}
