"""Says which TOML files a JSON Schema accepts:

    config.py <schema.json> <file>…

Prints a line for each file: its name, and `fits` or what does not. The schema itself must be one.
"""

import json
import sys
import tomllib

from jsonschema import Draft7Validator

schema = json.load(open(sys.argv[1], encoding="utf-8"))
Draft7Validator.check_schema(schema)
validator = Draft7Validator(schema)
for name in sys.argv[2:]:
    try:
        with open(name, "rb") as file:
            errors = [f"{e.json_path}: {e.message}" for e in validator.iter_errors(tomllib.load(file))]
    except tomllib.TOMLDecodeError as error:
        errors = [f"not TOML: {error}"]
    print(name, "; ".join(errors).replace("\n", " ") or "fits", sep="\t")
