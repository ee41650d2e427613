"""The OpenAPI document that a predictor's signature becomes."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from vyvo_runner.schema import SchemaError, main, openapi_document, write_schema

HEAD = """
from datetime import datetime
from typing import Any, Dict, Iterator, List, Optional
from cog import BaseRunner, ConcatenateIterator, Input, Path, Secret, streaming
"""


def predictor(folder: Path, body: str) -> str:
    """Write a predictor whose module name no other test uses; return its reference."""
    path = folder / f"predictor_{abs(hash(str(folder)))}.py"
    path.write_text(f"{HEAD}\nclass Predictor(BaseRunner):\n{body}\n")
    return f"{path}:Predictor"


def schemas(reference: str) -> dict[str, Any]:
    return openapi_document(reference)["components"]["schemas"]


def test_inputs_become_a_schema_that_accepts_and_refuses(tmp_path: Path) -> None:
    reference = predictor(
        tmp_path,
        """
    def setup(self):
        raise RuntimeError("setup must not run")

    def run(
        self,
        prompt: str = Input(description="what", min_length=2, max_length=5, regex="^[a-z]+$"),
        count: int = Input(default=1, ge=1, le=4),
        style: str = Input(default="ink", choices=["ink", "oil"]),
        seed: Optional[int] = Input(default=None, ge=0),
        image: Path = Input(default=None, accept="image/*"),
        scales: List[float] = Input(default=None),
        loud: bool = False,
        key: Optional[Secret] = None,
    ) -> str:
        return prompt
""",
    )
    inputs = schemas(reference)["Input"]
    assert inputs["required"] == ["prompt", "image", "scales"]
    properties = inputs["properties"]
    assert [properties[name]["x-order"] for name in properties] == list(range(8))
    assert properties["seed"] == {
        "title": "Seed",
        "type": "integer",
        "x-order": 3,
        "minimum": 0,
        "nullable": True,
    }
    assert properties["image"]["format"] == "uri"
    assert properties["key"]["x-cog-secret"] is True
    assert properties["loud"]["default"] is False
    assert properties["scales"]["items"] == {"type": "number"}
    good = {"prompt": "abc", "image": "https://a/b.png", "scales": [1.5], "style": "oil"}
    jsonschema.validate(good, inputs)
    for bad in ({"prompt": "a"}, {"prompt": "ABC"}, {"count": 5}, {"count": "1"}, {"style": "wax"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, **bad}, inputs)


def test_an_artifact_is_an_output(tmp_path: Path) -> None:
    body = "    def run(self, a: int) -> Iterator[__import__('vyvo_runner').Artifact]:\n        ..."
    items = schemas(predictor(tmp_path, body))["Output"]["items"]
    assert set(items["properties"]) == {"type", "url", "size_bytes", "mime_type", "expires_at"}
    time = {"type": "string", "format": "date-time", "nullable": True}
    assert items["properties"]["expires_at"] == time


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("str", {"type": "string", "title": "Output"}),
        ("Dict[str, Any]", {"type": "object", "title": "Output"}),
        (
            "List[Path]",
            {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"},
        ),
        ("datetime", {"type": "string", "format": "date-time", "title": "Output"}),
        (
            "Iterator[int]",
            {
                "type": "array",
                "items": {"type": "integer"},
                "x-cog-array-type": "iterator",
                "title": "Output",
            },
        ),
        (
            "ConcatenateIterator[str]",
            {
                "type": "array",
                "items": {"type": "string"},
                "x-cog-array-type": "iterator",
                "x-cog-array-display": "concatenate",
                "title": "Output",
            },
        ),
    ],
)
def test_outputs(tmp_path: Path, annotation: str, expected: dict[str, Any]) -> None:
    reference = predictor(tmp_path, f"    def run(self, a: int) -> {annotation}:\n        ...")
    assert schemas(reference)["Output"] == expected


@pytest.mark.parametrize("decorator", ["@streaming", "@streaming()"])
def test_a_streaming_predictor_says_so(tmp_path: Path, decorator: str) -> None:
    body = f"    {decorator}\n    def run(self, a: int) -> Iterator[str]:\n        yield ''"
    document = openapi_document(predictor(tmp_path, body))
    assert document["paths"]["/predictions"]["post"]["x-cog-streaming"] is True


def test_the_old_name_of_the_method_works(tmp_path: Path) -> None:
    document = openapi_document(
        predictor(tmp_path, "    def predict(self, a: int) -> str:\n        ...")
    )
    assert "x-cog-streaming" not in document["paths"]["/predictions"]["post"]
    assert list(document["components"]["schemas"]["Input"]["properties"]) == ["a"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    def run(self, a) -> str: ...", "a: an input needs a type"),
        ("    def run(self, *a: int) -> str: ...", "a: a predictor names its inputs"),
        ("    def run(self, a: complex) -> str: ...", "a: .*complex.* is no type"),
        ("    def run(self, a: 'Missing') -> str: ...", "not imported"),
        ("    @streaming\n    def run(self, a: int) -> str: ...", "returns Iterator"),
        ("    pass", "neither run"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        openapi_document(predictor(tmp_path, body))


def test_the_command_writes_whole_files_and_fails_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = predictor(tmp_path, "    def run(self, a: int) -> str:\n        ...")
    output = tmp_path / "new" / "schema.json"
    assert main([reference, "--output", str(output)]) == 0
    assert write_schema(reference, output) == output
    assert [path.name for path in output.parent.iterdir()] == ["schema.json"]
    assert main([str(tmp_path / "none.py")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
