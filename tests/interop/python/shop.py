"""grpcio against the shop: all four shapes, error details, deadlines, health, reflection.

Messages are made from what reflection says, so nothing is generated.
"""

import sys
import threading

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

channel = grpc.insecure_channel(sys.argv[1])
database = ProtoReflectionDescriptorDatabase(channel)
pool = descriptor_pool.DescriptorPool(database)


def message(name, **fields):
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    return kind(**fields)


def method(service, name):
    """A callable for a method of the contract, of the right shape."""
    descriptor = pool.FindServiceByName(service).FindMethodByName(name)
    answer = message_factory.GetMessageClass(descriptor.output_type)
    shape = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[(descriptor.client_streaming, descriptor.server_streaming)]
    return shape(
        f"/{service}/{name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=answer.FromString,
    )


ORDERS, INVENTORY = "shop.orders.v1.OrdersService", "shop.inventory.v1.InventoryService"
NOTIFICATIONS = "shop.notifications.v1.NotificationsService"


def reflection():
    services = database.get_services()
    for service in (ORDERS, INVENTORY, NOTIFICATIONS, "grpc.health.v1.Health"):
        assert service in services, services


def health():
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", ORDERS):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, answer
    try:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        raise AssertionError("an unknown service is not known")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND


def unary_and_server_stream():
    line = message("shop.orders.v1.OrderLine", sku="cup-blue", quantity=2)
    request = message(
        "shop.orders.v1.PlaceOrderRequest", customer_id="python", card="tok_ok", lines=[line]
    )
    metadata = [("idempotency-key", "python-1")]
    order = method(ORDERS, "PlaceOrder")(request, metadata=metadata, timeout=10)
    assert order.total_cents == 2500, order
    again = method(ORDERS, "PlaceOrder")(request, metadata=metadata, timeout=10)
    assert again.id == order.id
    watch = message("shop.orders.v1.WatchOrderRequest", id=order.id)
    states = [seen.status for seen in method(ORDERS, "WatchOrder")(watch, timeout=30)]
    assert states[-1] == 2, states


def client_stream():
    def articles():
        for number in range(50):
            yield message(
                "shop.inventory.v1.PutStockRequest",
                sku=f"python-{number}",
                quantity=number,
                price_cents=100,
            )

    answer = method(INVENTORY, "ImportStock")(articles(), timeout=30)
    assert answer.count == 50, answer
    stock = method(INVENTORY, "GetStock")(
        message("shop.inventory.v1.GetStockRequest", sku="python-49"), timeout=10
    )
    assert stock.on_hand == 49, stock


def bidi():
    """The answer comes before the next question is asked."""
    answered = threading.Semaphore(0)

    def questions():
        for number in range(5):
            yield message(
                "shop.notifications.v1.ChatMessage", customer_id="nobody", text=f"hello {number}"
            )
            assert answered.acquire(timeout=10)

    for number, answer in enumerate(method(NOTIFICATIONS, "Chat")(questions(), timeout=30)):
        assert f"hello {number}" in answer.text, answer
        answered.release()


def errors_carry_details():
    try:
        method(INVENTORY, "GetStock")(
            message("shop.inventory.v1.GetStockRequest", sku="no/such"), timeout=10
        )
        raise AssertionError("there is no such sku")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
        status = rpc_status.from_call(error)
        info = error_details_pb2.ErrorInfo()
        assert any(detail.Unpack(info) for detail in status.details), status
        assert (info.reason, info.domain) == ("SKU_NOT_FOUND", "shop.inventory"), info
    try:
        method(ORDERS, "PlaceOrder")(
            message("shop.orders.v1.PlaceOrderRequest", customer_id="python", card="gold"),
            timeout=10,
        )
        raise AssertionError("the request breaks two rules")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        bad = error_details_pb2.BadRequest()
        status = rpc_status.from_call(error)
        assert any(detail.Unpack(bad) for detail in status.details), status
        assert {violation.field for violation in bad.field_violations} == {"card", "lines"}, bad


def deadlines_and_unknown_methods():
    watch = message("shop.notifications.v1.SubscribeRequest", customer_id="silent")
    try:
        list(method(NOTIFICATIONS, "Subscribe")(watch, timeout=0.5))
        raise AssertionError("nobody tells this customer anything")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    unknown = channel.unary_unary(
        f"/{ORDERS}/Nothing", request_serializer=bytes, response_deserializer=bytes
    )
    try:
        unknown(b"", timeout=10)
        raise AssertionError("there is no such method")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def compression():
    zipped = grpc.insecure_channel(sys.argv[1], compression=grpc.Compression.Gzip)
    descriptor = pool.FindServiceByName(INVENTORY).FindMethodByName("ListStock")
    answer = message_factory.GetMessageClass(descriptor.output_type)
    call = zipped.unary_unary(
        f"/{INVENTORY}/ListStock",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    request = message("shop.inventory.v1.ListStockRequest", page_size=1000)
    assert len(call(request, timeout=10).stock) >= 10


for check in (
    reflection,
    health,
    unary_and_server_stream,
    client_stream,
    bidi,
    errors_carry_details,
    deadlines_and_unknown_methods,
    compression,
):
    check()
    print("ok", check.__name__)
