"""What is being served, in the words of GET /v1/model."""

from __future__ import annotations

from typing import Any

from vizsla.serving.model import ServedModel
from vizsla.serving.settings import ServeSettings


def describe(served: ServedModel, settings: ServeSettings) -> dict[str, Any]:
    """The model's classes, input, engine, figures and origin, and the limits of a request."""
    facts = served.predictor.facts
    return {
        "name": served.name,
        "architecture": facts.architecture,
        "classes": [{"label": one.code, "class_name": one.name} for one in facts.classes],
        "input": facts.preprocessing.to_dict(),
        "engine": {
            "name": served.engine.name,
            "precision": served.engine.precision,
            "measured": served.choice.found,
        },
        "metrics": dict(facts.metrics),
        "created": facts.created,
        "vizsla": facts.vizsla,
        "sha256": served.digest,
        "export": dict(getattr(facts, "export", {})),
        "limits": {
            "body_bytes": settings.body_bytes,
            "pictures": settings.max_pictures,
            "megapixels": settings.max_megapixels,
            "deadline_s": settings.deadline_s,
        },
    }
