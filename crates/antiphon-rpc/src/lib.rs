//! Answering and calling: one method served as gRPC, gRPC-Web, Connect and REST; the client stack.
