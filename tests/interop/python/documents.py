"""The documents of a running shop are what they say they are.

Usage: documents.py http://ADDRESS FOLDER-WITH-NODE-MODULES
"""

import json
import pathlib
import sys
import urllib.request

import jsonschema
from openapi_spec_validator import OpenAPIV31SpecValidator

address, modules = sys.argv[1:]


def document(name):
    with urllib.request.urlopen(f"{address}/{name}", timeout=20) as answer:
        return json.load(answer)


openapi = document("openapi.json")
assert openapi["openapi"].startswith("3.1"), openapi["openapi"]
OpenAPIV31SpecValidator(openapi).validate()
assert "/v1/orders/{id}:cancel" in openapi["paths"], list(openapi["paths"])

asyncapi = document("asyncapi.json")
assert asyncapi["asyncapi"].startswith("3.0"), asyncapi["asyncapi"]
schemas = pathlib.Path(modules) / "node_modules/@asyncapi/specs/schemas"
schema = json.loads((schemas / "3.0.0-without-$id.json").read_text())
jsonschema.Draft7Validator(schema).validate(asyncapi)
assert "shop.orders" in asyncapi["channels"], list(asyncapi["channels"])


def references(value):
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)


# The schema sees that references are well written, not that they lead anywhere.
for reference in references(asyncapi):
    place = asyncapi
    for step in reference.removeprefix("#/").split("/"):
        assert step in place, reference
        place = place[step]
