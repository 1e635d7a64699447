"""A client on grpcio of the contract `interop.v1.Peer`: see tests/peers/contract.rs.

python peer_client.py ADDRESS...: does what each line of its standard input asks, says in one line what
became of it, and ends with its input.
"""

import json
import os
import sys
import threading
import time
from collections import Counter

import grpc
from google.protobuf.wrappers_pb2 import StringValue

RETRIES = {
    "maxAttempts": 4,
    "initialBackoff": "0.01s",
    "maxBackoff": "0.02s",
    "backoffMultiplier": 1,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# Put has no policy: it must not be done twice.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {"name": [{"service": "interop.v1.Peer", "method": "Get"}], "retryPolicy": RETRIES}
    ],
}
channel = grpc.insecure_channel(
    "ipv4:" + ",".join(sys.argv[1:]),
    options=[
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        # Without it the requests would name the whole list, which is no authority of HTTP.
        ("grpc.default_authority", "interop"),
    ],
)


def method(name):
    return channel.unary_unary(
        f"/interop.v1.Peer/{name}",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )


METHODS = {"Get": method("Get"), "Put": method("Put")}


def call(order):
    request = StringValue(value=json.dumps(order["ask"]))
    timeout = order["timeout_ms"] / 1000 if order.get("timeout_ms") else None
    begun = time.monotonic()
    future = METHODS[order["method"]].future(request, timeout=timeout)
    if order.get("cancel_ms"):
        threading.Timer(order["cancel_ms"] / 1000, future.cancel).start()
    outcome = {}
    try:
        outcome["answer"] = json.loads(future.result().value)
    except grpc.FutureCancelledError:
        outcome["code"] = grpc.StatusCode.CANCELLED.value[0]
    except grpc.RpcError as error:
        outcome["code"] = error.code().value[0]
        outcome["message"] = error.details()
    outcome["took_ms"] = (time.monotonic() - begun) * 1000
    return outcome


class Load:
    """Calls that go on until they are stopped."""

    def __init__(self, order):
        self.order, self.lock, self.ended = order, threading.Lock(), threading.Event()
        self.answered, self.failures = Counter(), []
        self.threads = [threading.Thread(target=self.run) for _ in range(order["tasks"])]
        for thread in self.threads:
            thread.start()

    def run(self):
        while not self.ended.is_set():
            outcome = call(self.order)
            with self.lock:
                if "answer" in outcome:
                    self.answered[outcome["answer"]["name"]] += 1
                else:
                    self.failures.append(f"{outcome['code']}: {outcome.get('message')}")

    def report(self):
        with self.lock:
            return {"answered": dict(self.answered), "failures": self.failures[:10]}


load = None
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "call":
        result = call(order)
    elif order["do"] == "load":
        load = Load(order)
        result = load.report()
    elif order["do"] == "look":
        result = load.report()
    elif order["do"] == "stop":
        load.ended.set()
        for thread in load.threads:
            thread.join()
        result = load.report()
    print(json.dumps(result), flush=True)
os._exit(0)
