"""A hypervisor's published API description, and what it objects to in a request.

Reads OpenAPI 3 (cloud-hypervisor) and Swagger 2 (firecracker) as far as these two use them. The descriptions are
reference data beside the checkout (`shared/specs`), never part of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def find(name: str) -> Path | None:
    """The description of that name, in `shared/specs` beside the checkout or above; None where it is missing."""
    for folder in ROOT.parents:
        path = folder / "shared" / "specs" / name
        if path.is_file():
            return path
    return None


def load(name: str) -> Description | None:
    """The description, None where the folder is missing (or the parser: a test holds that it is there)."""
    path = find(name)
    try:
        import yaml
    except ImportError:
        return None
    if path is None:
        return None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return Description(yaml.load(path.read_text(), Loader=loader))


class Description:
    """Which requests and documents an API takes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._paths = document["paths"]

    def objection(self, method: str, path: str, body: Any) -> str:
        """What is wrong with a request, empty for nothing; `path` is without the API's base."""
        operation = self._operation(method, path)
        if operation is None:
            return f"the API has no {method} {path}"
        schema = self._body_schema(operation)
        if schema is None:
            return "the request takes no body" if body is not None else ""
        if body is None:
            return "the request needs a body"
        return self._differs(body, schema, "body")

    def differs(self, document: Any, schema: str) -> str:
        """What is wrong with a document of that named schema, empty for nothing."""
        return self._differs(document, self._named(schema), schema)

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for known, methods in self._paths.items():
            parts, given = known.split("/"), path.split("/")
            same = len(parts) == len(given) and all(
                p == g or p.startswith("{") for p, g in zip(parts, given, strict=True)
            )
            if same and method.lower() in methods:
                found: dict[str, Any] = methods[method.lower()]
                return found
        return None

    def _body_schema(self, operation: dict[str, Any]) -> dict[str, Any] | None:
        if "requestBody" in operation:  # OpenAPI 3
            return dict(operation["requestBody"]["content"]["application/json"]["schema"])
        for parameter in operation.get("parameters", ()):  # Swagger 2
            if parameter.get("in") == "body":
                return dict(parameter["schema"])
        return None

    def _named(self, name: str) -> dict[str, Any]:
        schemas = self._document.get("definitions") or self._document["components"]["schemas"]
        found: dict[str, Any] = schemas[name]
        return found

    def _differs(self, value: Any, schema: dict[str, Any], where: str) -> str:
        if "$ref" in schema:
            schema = self._named(schema["$ref"].rpartition("/")[2])
        if "allOf" in schema:
            return next(filter(None, (self._differs(value, part, where) for part in schema["allOf"])), "")
        if "enum" in schema and value not in schema["enum"]:
            return f"{where}: {value!r} is none of {schema['enum']}"
        kind = schema.get("type", "object" if "properties" in schema else "")
        types: dict[str, type | tuple[type, ...]] = {
            "object": dict,
            "array": list,
            "string": str,
            "boolean": bool,
            "integer": int,
            "number": (int, float),
        }
        if kind and (not isinstance(value, types[kind]) or (kind == "integer" and isinstance(value, bool))):
            return f"{where}: {value!r} is no {kind}"
        if kind == "integer" and value < schema.get("minimum", value):
            return f"{where}: {value} is less than {schema['minimum']}"
        if kind == "array":
            parts = (self._differs(v, schema.get("items", {}), f"{where}[{n}]") for n, v in enumerate(value))
            return next(filter(None, parts), "")
        if kind == "object":
            return self._object_differs(value, schema, where)
        return ""

    def _object_differs(self, value: dict[str, Any], schema: dict[str, Any], where: str) -> str:
        properties = schema.get("properties", {})
        for name in schema.get("required", ()):
            if value.get(name) is None:
                return f"{where}: missing field `{name}`"
        others = schema.get("additionalProperties")
        for name, content in value.items():
            if name in properties:
                # null is how the programs write an option that is not set
                problem = "" if content is None else self._differs(content, properties[name], f"{where}.{name}")
            elif isinstance(others, dict):
                problem = self._differs(content, others, f"{where}.{name}")
            else:
                problem = "" if others or not properties else f"{where}: unknown field `{name}`"
            if problem:
                return problem
        return ""
