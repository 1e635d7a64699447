"""What schemathesis cannot know from the document of the shop.

Valid cases name things that exist, so that they get behind the validation. Cases that are invalid for
JSON Schema but mean something valid in the JSON of protobuf are left out: its readers must take null
for a field that is not given and numbers for 64-bit integers, while the document says what is written.
"""

import uuid

import jsonschema
import schemathesis

SKU = "pen-black"


@schemathesis.hook
def map_case(context, case):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return case
    operation = case.operation.definition.raw["operationId"]
    if operation == "OrdersService_PlaceOrder":
        for line in case.body["lines"]:
            line["sku"] = SKU
        # A key is chosen anew for each order.
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
    if operation == "OrdersService_ListOrders" or operation == "InventoryService_ListStock":
        # A page token comes out of an answer; nobody makes one up.
        case.query.pop("pageToken", None)
    return case


@schemathesis.hook
def filter_case(context, case):
    if case.meta is None or case.meta.generation.mode.is_positive:
        return True
    document = case.operation.schema.raw_schema
    content = case.operation.definition.raw.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema")
    if schema is None or case.meta.phase.data.parameter_location != "body":
        return True
    plain = canonical(case.body, schema, document)
    valid = jsonschema.Draft202012Validator({**schema, "components": document["components"]}).is_valid
    return valid(case.body) or not valid(plain)


def canonical(value, schema, document):
    """The same value as writers of protobuf's JSON write it."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        return {
            name: canonical(inner, properties.get(name, {}), document)
            for name, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list):
        return [canonical(inner, schema.get("items", {}), document) for inner in value]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and schema.get("format") in ("int64", "uint64") and value == int(value):
        return str(int(value))
    if isinstance(value, str) and schema.get("format") in ("int32", "uint32"):
        try:
            return int(value)
        except ValueError:
            return value
    return value
