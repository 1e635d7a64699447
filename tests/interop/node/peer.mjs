// What the server and the client on grpc-js share: the contract `interop.v1.Peer`.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { StringValueSchema } from "@bufbuild/protobuf/wkt";

const write = (value) => Buffer.from(toBinary(StringValueSchema, create(StringValueSchema, { value })));
const read = (bytes) => fromBinary(StringValueSchema, bytes).value;

function method(name, responseStream = false) {
  return {
    path: `/interop.v1.Peer/${name}`,
    requestStream: false,
    responseStream,
    requestSerialize: write,
    requestDeserialize: read,
    responseSerialize: write,
    responseDeserialize: read,
  };
}

export const PEER = {
  get: method("Get"),
  put: method("Put"),
  look: method("Look"),
  count: method("Count", true),
};
