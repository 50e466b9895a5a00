"""The handler that the comparison builds by each toolchain, in Python."""

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports.streams import StreamError_Closed
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam

METHODS = {"Method_Get": "GET", "Method_Post": "POST", "Method_Put": "PUT"}


def read(request: IncomingRequest) -> bytes:
    body = request.consume()
    stream = body.stream()
    pieces = []
    while True:
        try:
            pieces.append(stream.blocking_read(65536))
        except Err as error:
            if isinstance(error.value, StreamError_Closed):
                return b"".join(pieces)
            raise


def respond(out: ResponseOutparam, status: int, data: bytes) -> None:
    response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain"), ("x-guest", b"same")]))
    response.set_status_code(status)
    body = response.body()
    ResponseOutparam.set(out, Ok(response))
    stream = body.write()
    for at in range(0, len(data), 4096):
        stream.blocking_write_and_flush(data[at : at + 4096])
    stream.__exit__(None, None, None)
    OutgoingBody.finish(body, None)


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        target = request.path_with_query() or ""
        if target == "/echo":
            return respond(response_out, 200, read(request))
        if target == "/teapot":
            return respond(response_out, 418, b"short and stout\n")
        method = METHODS.get(type(request.method()).__name__, "OTHER")
        asked = b"".join(b"x-ask: " + value + b"\n" for value in request.headers().get("x-ask"))
        respond(response_out, 200, f"{method} {target}\n".encode() + asked)
