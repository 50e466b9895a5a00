// The handler that the comparison builds by each toolchain, in JavaScript.
import { Fields, OutgoingBody, OutgoingResponse, ResponseOutparam } from 'wasi:http/types@0.2.12';

const encoder = new TextEncoder();

function read(request) {
  const body = request.consume();
  const stream = body.stream();
  const pieces = [];
  for (;;) {
    try {
      pieces.push(stream.blockingRead(65536n));
    } catch (error) {
      if ((error.payload ?? error).tag === 'closed') break;
      throw error;
    }
  }
  const whole = new Uint8Array(pieces.reduce((length, piece) => length + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

function respond(out, status, bytes) {
  const headers = [['content-type', 'text/plain'], ['x-guest', 'same']];
  const fields = Fields.fromList(headers.map(([name, value]) => [name, encoder.encode(value)]));
  const response = new OutgoingResponse(fields);
  response.setStatusCode(status);
  const body = response.body();
  ResponseOutparam.set(out, { tag: 'ok', val: response });
  const stream = body.write();
  for (let at = 0; at < bytes.length; at += 4096) {
    stream.blockingWriteAndFlush(bytes.subarray(at, at + 4096));
  }
  stream[Symbol.dispose]();
  OutgoingBody.finish(body, undefined);
}

export const incomingHandler = {
  handle(request, out) {
    const target = request.pathWithQuery() ?? '';
    if (target === '/echo') return respond(out, 200, read(request));
    if (target === '/teapot') return respond(out, 418, encoder.encode('short and stout\n'));
    const { tag } = request.method();
    const method = ['get', 'post', 'put'].includes(tag) ? tag.toUpperCase() : 'OTHER';
    const asked = request.headers().get('x-ask').map((value) => `x-ask: ${new TextDecoder().decode(value)}\n`);
    respond(out, 200, encoder.encode(`${method} ${target}\n${asked.join('')}`));
  },
};
