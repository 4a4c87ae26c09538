"""The description of the server's routes for programs: GET /openapi.json, OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from vizsla.serving.bodies import PICTURE_TYPES
from vizsla.serving.invocation import DEADLINE_HEADER
from vizsla.serving.refusals import STATUS_OF
from vizsla.version import __version__

_PICTURE = {
    "oneOf": [
        {"type": "string", "description": "Base64, a data: URL, or an allowed address."},
        {
            "type": "object",
            "properties": {"b64": {"type": "string", "format": "byte"}},
            "required": ["b64"],
        },
        {
            "type": "object",
            "properties": {"url": {"type": "string", "format": "uri"}},
            "required": ["url"],
        },
    ]
}

_FACTS: dict[str, Any] = {"type": "object"}

_RANKED = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "class_name": {"type": "string"},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["label", "class_name", "confidence"],
}

_PREDICTION = {
    "type": "object",
    "properties": {
        "predicted_label": {"type": "string"},
        "class_name": {"type": "string"},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "top_k": {"type": "array", "items": _RANKED},
    },
    "required": ["predicted_label", "class_name", "confidence", "top_k"],
}

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "enum": sorted(STATUS_OF)},
                "message": {"type": "string"},
            },
            "required": ["code", "message"],
        }
    },
    "required": ["error"],
}

_TIMING = {"model": {"type": "string"}, "ms": {"type": "number", "minimum": 0}}


def openapi(model: str, has_token: bool) -> dict[str, Any]:
    """The description of a server of `model`."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"vizsla: {model}", "version": __version__},
        "paths": {
            "/invocations": {"post": _predict("invoke")},
            "/v1/predict": {"post": _predict("predict")},
            "/ping": {"get": _get("ping", "Whether the server is ready.", _FACTS, "503")},
            "/v1/model": {
                "get": _get("model", "What is being served.", _FACTS, "401"),
                "post": _get(
                    "reload",
                    "Take the bundle that lies in the server's folder now. Needs the token.",
                    _FACTS,
                    "401",
                    "403",
                    "422",
                    "503",
                ),
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Figures for Prometheus.",
                    "responses": {"200": _content("text/plain", {"type": "string"})},
                }
            },
        },
        "components": {
            "schemas": {
                "Prediction": _PREDICTION,
                "Answer": _one_answer(),
                "Answers": _several_answers(),
                "Error": _ERROR,
            }
        },
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        document["paths"]["/ping"]["get"]["security"] = []
    return document


def _predict(name: str) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    parts = {"type": "object", "additionalProperties": binary["schema"]}
    listed = {"type": "array", "items": _PICTURE, "minItems": 1}
    top_k = {"type": "integer", "minimum": 1, "default": 5}
    asked = {
        "oneOf": [
            {"type": "object", "properties": {key: schema, "top_k": top_k}, "required": [key]}
            for key, schema in (("image", _PICTURE), ("images", listed), ("instances", listed))
        ]
    }
    either = {"oneOf": [_reference("Answer"), _reference("Answers")]}
    refusals = ("400", "401", "406", "408", "413", "415", "422", "503", "504")
    return {
        "operationId": name,
        "summary": "Classify one picture, or several.",
        "parameters": [
            {
                "name": "top_k",
                "in": "query",
                "description": "How many classes to name, best first.",
                "schema": top_k,
            },
            {
                "name": DEADLINE_HEADER,
                "in": "header",
                "description": "Milliseconds after which nobody waits for the answer any more.",
                "schema": {"type": "integer", "minimum": 1},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                **dict.fromkeys(sorted(PICTURE_TYPES), binary),
                "multipart/form-data": {"schema": parts},
                "application/json": {"schema": asked},
            },
        },
        "responses": {
            "200": {
                "description": "The answer, or one for each picture.",
                "content": {
                    "application/json": {"schema": either},
                    "text/csv": {"schema": {"type": "string"}},
                },
            },
            **{status: _refusal() for status in refusals},
        },
    }


def _get(name: str, summary: str, schema: dict[str, Any], *refusals: str) -> dict[str, Any]:
    answers = {"200": _content("application/json", schema)}
    answers |= {status: _refusal() for status in refusals}
    return {"operationId": name, "summary": summary, "responses": answers}


def _content(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "The answer.", "content": {kind: {"schema": schema}}}


def _refusal() -> dict[str, Any]:
    return {
        "description": "Why there is no answer.",
        "content": {"application/json": {"schema": _reference("Error")}},
    }


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _one_answer() -> dict[str, Any]:
    return {
        "allOf": [
            _reference("Prediction"),
            {"type": "object", "properties": _TIMING, "required": list(_TIMING)},
        ]
    }


def _several_answers() -> dict[str, Any]:
    entry = {"oneOf": [_reference("Prediction"), _reference("Error")]}
    return {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": entry}, **_TIMING},
        "required": ["predictions", *_TIMING],
    }
