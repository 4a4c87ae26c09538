"""vizsla predict: what is in a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vizsla.errors import PictureError, SettingError


def predict(
    model: Path,
    /,
    *pictures: Path,
    top: int = 5,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Predict the class of pictures with a run or a bundle.

    Parameters
    ----------
    model
        A run's or a bundle's folder.
    pictures
        Picture files.
    top
        How many classes to name, best first.
    as_json
        Print one JSON object a line instead of text.
    """
    from vizsla.bundle.predictor import load_bundle

    if not pictures:
        raise SettingError("No pictures given: vizsla predict RUN_OR_BUNDLE PICTURE …")
    if top < 1:
        raise SettingError(f"--top is {top}, but must be at least 1.")
    predictor = load_bundle(model)
    unread: list[PictureError] = []
    for path in pictures:
        try:
            answer = predictor.predict(path, top)
        except PictureError as error:
            unread.append(error)
            if as_json:
                print(json.dumps({"path": str(path), "error": str(error)}), flush=True)
            continue
        if as_json:
            print(json.dumps(answer.to_dict(), ensure_ascii=False), flush=True)
            continue
        print(f"{path}: {answer.class_name} ({answer.confidence:.1%})")
        for ranked in answer.top_k[1:]:
            print(f"    {ranked.confidence:6.1%}  {ranked.class_name}")
    if unread:  # after the answers, so that one bad file costs no other
        raise PictureError(" ".join(map(str, unread)))
