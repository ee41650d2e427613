"""The OpenAPI document around an input and an output schema, in the shape that Cog's own build writes."""

from __future__ import annotations

from typing import Any, Dict

__all__ = ["document"]


def _reference(name: str) -> Dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json_answer(description: str, schema: Dict[str, Any]) -> Dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def document(inputs: Dict[str, Any], output: Dict[str, Any], streaming: bool) -> Dict[str, Any]:
    """Return the OpenAPI 3.0 document; `streaming` marks a predictor that serves server-sent events."""
    text: Dict[str, Any] = {"type": "string"}
    predict: Dict[str, Any] = {
        "summary": "Predict",
        "operationId": "predict_predictions_post",
        "requestBody": {
            "content": {"application/json": {"schema": _reference("PredictionRequest")}}
        },
        "responses": {
            "200": _json_answer("Successful Response", _reference("PredictionResponse")),
            "422": _json_answer("Validation Error", _reference("HTTPValidationError")),
        },
    }
    if streaming:
        predict["x-cog-streaming"] = True
    cancel: Dict[str, Any] = {
        "summary": "Cancel",
        "operationId": "cancel_predictions__prediction_id__cancel_post",
        "parameters": [{"required": True, "schema": text, "name": "prediction_id", "in": "path"}],
        "responses": {"200": _json_answer("Successful Response", {})},
    }
    statuses = ["starting", "processing", "succeeded", "canceled", "failed"]
    schemas: Dict[str, Any] = {
        "Input": inputs,
        "Output": output,
        "Status": {"title": "Status", "type": "string", "enum": statuses},
        "PredictionRequest": {
            "title": "PredictionRequest",
            "type": "object",
            "properties": {"id": text, "input": _reference("Input")},
        },
        "PredictionResponse": {
            "title": "PredictionResponse",
            "type": "object",
            "properties": {
                "id": text,
                "status": _reference("Status"),
                "input": _reference("Input"),
                "output": _reference("Output"),
                "error": text,
                "logs": text,
                "metrics": {"type": "object"},
            },
        },
        "HTTPValidationError": {
            "title": "HTTPValidationError",
            "type": "object",
            "properties": {"detail": {"type": "array", "items": {"type": "object"}}},
        },
    }
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "1"},
        "paths": {
            "/predictions": {"post": predict},
            "/predictions/{prediction_id}/cancel": {"post": cancel},
        },
        "components": {"schemas": schemas},
    }
