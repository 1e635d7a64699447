"""A server on grpcio of the contract `interop.v1.Peer`: see tests/peers/contract.rs.

python peer_server.py OPTIONS: prints its port, leaves in order when it reads "stop", and ends at once
when its standard input ends.
"""

import json
import os
import sys
import threading
import time
from collections import defaultdict
from concurrent import futures

import grpc
from google.protobuf.wrappers_pb2 import StringValue

options = json.loads(sys.argv[1])
lock = threading.Lock()
seen = defaultdict(lambda: {"at": [], "cancelled": 0})


def begin(ask):
    """Notes an attempt; returns its number."""
    with lock:
        attempts = seen[ask.get("id", "")]["at"]
        attempts.append(time.monotonic() * 1000)
        return len(attempts)


def wait(ask, context):
    """Waits as long as it is asked to, or until nobody waits for the answer."""
    gone = threading.Event()
    if not context.add_callback(gone.set):
        gone.set()
    if gone.wait(ask["waits_ms"] / 1000):
        with lock:
            seen[ask.get("id", "")]["cancelled"] += 1


def answer(request, context):
    ask = json.loads(request.value)
    number = begin(ask)
    remaining = context.time_remaining()
    # Without a deadline it is as good as endless.
    if remaining is not None and remaining > 1e9:
        remaining = None
    metadata = dict(context.invocation_metadata())
    if ask.get("waits_ms"):
        wait(ask, context)
    if number <= ask.get("fails", 0):
        if ask.get("pushback") is not None:
            context.set_trailing_metadata([("grpc-retry-pushback-ms", ask["pushback"])])
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
    return StringValue(
        value=json.dumps(
            {
                "name": options["name"],
                "attempt": number,
                "previous": int(metadata.get("grpc-previous-rpc-attempts", "0")),
                "remaining_ms": None if remaining is None else remaining * 1000,
                "padding": "x" * ask.get("bytes", 0),
            }
        )
    )


def look(request, _):
    with lock:
        return StringValue(value=json.dumps(seen[request.value]))


def count(request, context):
    ask = json.loads(request.value)
    begin(ask)
    done, gone = threading.Event(), threading.Event()

    # Told at once: a call that ends between two messages never comes back here.
    def ended():
        if not done.is_set():
            with lock:
                seen[ask.get("id", "")]["cancelled"] += 1
        gone.set()

    if not context.add_callback(ended):
        ended()
    for number in range(ask.get("counts", 0)):
        yield StringValue(value=str(number).rjust(ask.get("bytes", 0)))
    gone.wait(ask.get("waits_ms", 0) / 1000)
    done.set()


def handlers():
    codec = {
        "request_deserializer": StringValue.FromString,
        "response_serializer": StringValue.SerializeToString,
    }
    return {
        "Get": grpc.unary_unary_rpc_method_handler(answer, **codec),
        "Put": grpc.unary_unary_rpc_method_handler(answer, **codec),
        "Look": grpc.unary_unary_rpc_method_handler(look, **codec),
        "Count": grpc.unary_stream_rpc_method_handler(count, **codec),
    }


arguments = []
if "age_ms" in options:
    arguments += [
        ("grpc.max_connection_age_ms", options["age_ms"]),
        ("grpc.max_connection_age_grace_ms", 10_000),
    ]
if "pings_apart_ms" in options:
    arguments += [("grpc.http2.min_ping_interval_without_data_ms", options["pings_apart_ms"])]
server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=64),
    options=arguments,
    compression=grpc.Compression.Gzip if options.get("compresses") else None,
)
server.add_generic_rpc_handlers(
    [grpc.method_handlers_generic_handler("interop.v1.Peer", handlers())]
)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
if sys.stdin.readline().strip() == "stop":
    server.stop(grace=20).wait()
    print("stopped", flush=True)
# Threads that still wait do not hold it up.
os._exit(0)
