"""Holds answers of a gateway to an OpenAPI description:

    openapi.py <description.yaml> < answers

Each line of the input is an answer: {"method","path","status","headers","body"}. Each must be described, and every operation and
every status of it that was seen must fit. Prints what does not, and the operations that no answer was given for; exits 1 then.
"""

import json
import sys

import yaml
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV32SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

document = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))
faults = [f"the description: {error.message}" for error in OpenAPIV32SpecValidator(document).iter_errors()]


def absolute(thing):
    """With references that hold wherever a part of the document is used."""
    if isinstance(thing, dict):
        return {key: "urn:api" + value if key == "$ref" else absolute(value) for key, value in thing.items()}
    return [absolute(item) for item in thing] if isinstance(thing, list) else thing


document = absolute(document)
registry = Registry().with_resource("urn:api", Resource.from_contents(document, default_specification=DRAFT202012))
checked = Draft202012Validator.FORMAT_CHECKER


def resolved(thing):
    while isinstance(thing, dict) and "$ref" in thing:
        reference, thing = thing["$ref"], document
        for step in reference.removeprefix("urn:api#/").split("/"):
            thing = thing[step]
    return thing


def errors(value, schema):
    return [e.message for e in Draft202012Validator(schema, registry=registry, format_checker=checked).iter_errors(value)]


def events(text):
    """The events of a stream, as far as they are whole."""
    for block in text.split("\n\n")[:-1]:
        fields, data = {}, []
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "retry":
                fields["retry"] = int(value)
            elif name:
                fields[name] = value
        if data:
            yield {**fields, "data": "\n".join(data)}


def content(name, schema):
    """What the description says about the data of an event of the gateway's own."""
    for case in resolved(schema).get("allOf", []):
        if case["if"]["properties"]["event"]["const"] == name:
            return case["then"]["properties"]["data"]["contentSchema"]
    return None


def body_faults(media, text):
    if "itemSchema" in media:
        schema = media["itemSchema"]
        for event in events(text):
            yield from errors(event, schema)
            inner = content(event.get("event"), schema)
            if inner is None and event.get("event", "").startswith("stream-"):
                continue  # clients ignore those that they do not know
            if inner is not None:
                yield from errors(json.loads(event["data"]), inner)
    elif "schema" in media:
        yield from errors(json.loads(text), media["schema"])


def template(path):
    """The template of a path, which may have several segments in the place of its parameter."""
    if path in document["paths"]:
        return path
    for candidate in document["paths"]:
        head, brace, _ = candidate.partition("{")
        if brace and path.startswith(head):
            return candidate
    return None


seen = set()
for line in sys.stdin:
    answer = json.loads(line)
    method, path, status = answer["method"].lower(), answer["path"].split("?")[0], str(answer["status"])
    name = f"{answer['method']} {answer['path']} {status}"
    found = template(path)
    operation = document["paths"].get(found, {}).get(method)
    if operation is None:
        faults.append(f"{name}: not described")
        continue
    seen.add((found, method))
    response = resolved(operation["responses"].get(status))
    if response is None:
        faults.append(f"{name}: this status is not described")
        continue
    headers = {key.lower(): value for key, value in answer["headers"].items()}
    for header, wanted in response.get("headers", {}).items():
        wanted = resolved(wanted)
        if wanted.get("required") and header.lower() not in headers:
            faults.append(f"{name}: no {header}")
        elif wanted.get("schema", {}).get("type") == "integer" and not headers.get(header.lower(), "0").isdigit():
            faults.append(f"{name}: {header} is no number")
    kind = headers.get("content-type", "").split(";")[0]
    described = response.get("content", {})
    if not answer["body"]:
        continue
    if kind not in described:
        faults.append(f"{name}: {kind or 'no content type'} is not described")
        continue
    faults.extend(f"{name}: {fault}" for fault in body_faults(described[kind], answer["body"]))

methods = {"get", "head", "post", "delete", "options"}
operations = {(path, method) for path, item in document["paths"].items() for method in item if method in methods}
faults.extend(f"{method.upper()} {path}: no answer was given for it" for path, method in sorted(operations - seen))
print("\n".join(faults))
sys.exit(1 if faults else 0)
