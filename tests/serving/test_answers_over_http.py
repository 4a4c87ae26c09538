"""What a client gets from a real server: the predictor's own answers, in each form of asking."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from vizsla import load_bundle
from vizsla.bundle.predictor import Predictor
from vizsla.runs.folder import RunFolder


@pytest.fixture(scope="module")
def predictor(finished_run: RunFolder) -> Predictor:
    return load_bundle(finished_run.bundle)


def _same(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    confidences = [entry["confidence"] for entry in answer["top_k"]]
    wanted = [entry["confidence"] for entry in expected["top_k"]]
    return (
        answer["predicted_label"] == expected["predicted_label"]
        and answer["class_name"] == expected["class_name"]
        and [entry["label"] for entry in answer["top_k"]]
        == [entry["label"] for entry in expected["top_k"]]
        and confidences == pytest.approx(wanted, abs=1e-5)
    )


@pytest.mark.parametrize("path", ["/invocations", "/v1/predict"])
def test_jpeg_gets_the_predictors_answer(
    server: Any, predictor: Predictor, picture: bytes, path: str
) -> None:
    response = server.post(picture, path=path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert _same(answer, predictor.predict(picture).to_dict())
    assert answer["model"] == predictor.folder.parent.name
    assert 0 < answer["ms"] < 60_000


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("PNG", "application/x-image"),
        ("JPEG", "application/octet-stream"),
        ("PNG", "IMAGE/JPEG; charset=binary"),
    ],
)
def test_each_format_is_answered(
    server: Any,
    predictor: Predictor,
    picture: bytes,
    as_format: Callable[[bytes, str], bytes],
    name: str,
    kind: str,
) -> None:
    body = as_format(picture, name)
    response = server.post(body, kind)
    assert response.status_code == 200, response.text
    assert _same(response.json(), predictor.predict(body).to_dict())


def test_several_files_in_multipart_are_answered_in_order(
    server: Any, predictor: Predictor, pictures: list[bytes]
) -> None:
    files = [("file", (f"../{at}.jpg", body, "image/jpeg")) for at, body in enumerate(pictures)]
    response = httpx2.post(server.address + "/invocations", files=files)
    answers = response.json()["predictions"]
    assert len(answers) == len(pictures)
    for answer, body in zip(answers, pictures, strict=True):
        assert _same(answer, predictor.predict(body).to_dict())


def test_one_file_in_multipart_gets_one_answer(server: Any, picture: bytes) -> None:
    response = httpx2.post(server.address + "/v1/predict", files={"any": ("a.jpg", picture)})
    assert response.status_code == 200
    assert response.json()["predicted_label"]


@pytest.mark.parametrize("form", ["text", "data", "object"])
def test_base64_in_json(server: Any, predictor: Predictor, picture: bytes, form: str) -> None:
    text = base64.encodebytes(picture).decode()
    item = {"text": text, "data": f"data:image/jpeg;base64,{text}", "object": {"b64": text}}[form]
    one = server.post(json.dumps({"image": item}).encode(), "application/json")
    assert _same(one.json(), predictor.predict(picture).to_dict())
    several = server.post(json.dumps({"images": [item] * 3}).encode(), "application/json")
    assert len(several.json()["predictions"]) == 3
    listed = server.post(json.dumps({"instances": [item]}).encode(), "application/json")
    assert _same(listed.json()["predictions"][0], predictor.predict(picture).to_dict())


def test_a_bad_picture_costs_no_other_its_answer(server: Any, picture: bytes) -> None:
    text = base64.b64encode(picture).decode()
    broken = base64.b64encode(picture[: len(picture) // 2]).decode()
    body = {"images": [text, broken, "%%%", base64.b64encode(b"no picture").decode(), 7, text]}
    response = server.post(json.dumps(body).encode(), "application/json")
    assert response.status_code == 200
    first, *bad, last = response.json()["predictions"]
    assert first == last
    assert [one["error"]["code"] for one in bad] == [
        "broken_picture", "bad_base64", "not_a_picture", "bad_json",
    ]  # fmt: skip
    assert all(one["error"]["message"] for one in bad)


def test_csv_has_a_line_a_picture(server: Any, predictor: Predictor, pictures: list[bytes]) -> None:
    items = [base64.b64encode(one).decode() for one in pictures] + ["%%%"]
    response = server.post(
        json.dumps({"images": items}).encode(), "application/json", headers={"Accept": "text/csv"}
    )
    assert response.headers["content-type"].startswith("text/csv")
    *rows, bad = csv.reader(io.StringIO(response.text))
    expected = [predictor.predict(one) for one in pictures]
    assert [row[:2] for row in rows] == [[one.predicted_label, one.class_name] for one in expected]
    assert [float(row[2]) for row in rows] == pytest.approx(
        [one.confidence for one in expected], abs=1e-5
    )
    assert bad == ["", "", "", "bad_base64"]


def test_top_k_names_as_many_as_asked(server: Any, picture: bytes) -> None:
    assert len(server.post(picture, path="/invocations?top_k=2").json()["top_k"]) == 2
    assert len(server.post(picture, path="/invocations?top_k=999").json()["top_k"]) == 3
    asked = json.dumps({"image": base64.b64encode(picture).decode(), "top_k": 1}).encode()
    assert len(server.post(asked, "application/json").json()["top_k"]) == 1


@pytest.mark.parametrize("asked", ["0", "-1", "x", "1e9", "٣", "9" * 5000])
def test_bad_top_k_is_refused(server: Any, picture: bytes, asked: str) -> None:
    response = server.post(picture, path=f"/invocations?top_k={asked}")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_query"


def test_model_tells_what_is_served(server: Any, predictor: Predictor) -> None:
    facts = server.get("/v1/model").json()
    assert [one["label"] for one in facts["classes"]] == [
        label.code for label in predictor.facts.classes
    ]
    assert facts["architecture"] == "test_resnet"
    assert facts["engine"]["name"] == "onnxruntime"
    assert facts["input"]["size_px"] == 64
    assert facts["metrics"]["test"]["pictures"] > 0
    assert facts["limits"]["body_bytes"] == 16 * 2**20


def test_description_names_each_route_and_code(server: Any, picture: bytes) -> None:
    document = server.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/invocations", "/v1/predict", "/ping", "/v1/model", "/metrics"} == set(
        document["paths"]
    )
    codes = document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]
    assert server.post(b"x").json()["error"]["code"] in codes["enum"]
    references = json.dumps(document).split('"$ref": "#/components/schemas/')[1:]
    assert {one.split('"')[0] for one in references} <= set(document["components"]["schemas"])


def test_page_comes_with_a_strict_policy(server: Any) -> None:
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert server.get("/page.css").headers["content-type"].startswith("text/css")
    assert server.get("/page.js").headers["content-type"].startswith("text/javascript")


def test_figures_count_what_was_done(server: Any, picture: bytes) -> None:
    def figures() -> dict[str, float]:
        lines = server.get("/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    before = figures()
    for _ in range(3):
        server.post(picture)
    server.post(b"no picture")
    after = figures()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown('vizsla_requests_total{route="/invocations",status="200"}') == 3
    assert grown('vizsla_requests_total{route="/invocations",status="422"}') == 1
    assert grown('vizsla_errors_total{code="not_a_picture"}') == 1
    assert grown("vizsla_batch_pictures_sum") == 3
    assert grown("vizsla_request_seconds_count") >= 3
    assert grown("vizsla_model_seconds_total") > 0
    assert grown("vizsla_decode_seconds_total") > 0
    assert after["vizsla_queue_pictures"] == 0
    assert after["vizsla_ready_processes"] == 1
