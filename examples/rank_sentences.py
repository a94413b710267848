"""Rank sentences by how close they come in meaning to a query, by embeddings from a running Preheat server."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

TOKENIZER = Path(__file__).resolve().parents[1] / "model_repo" / "minilm" / "tokenizer.json"
MAX_TOKENS = 256  # the server takes 512, but the model was trained to embed no more than this
CHECK_TIMEOUT_S = 5.0
INFER_TIMEOUT_S = 60.0

QUERY = "How can I keep bread fresh?"
SENTENCES = (
    "Store the loaf in a paper bag, away from the sun.",
    "Sourdough stays soft for longer than most other breads.",
    "Leftover crusts make good croutons.",
    "The bakery on the corner opens at six.",
    "Wheat prices rose again after the dry spring.",
    "My bicycle needs a new chain.",
    "The committee will meet again in March.",
)


def main() -> None:
    """Run from the command line."""
    arguments = parse_arguments()
    texts = [arguments.query, *(arguments.sentences or SENTENCES)]
    with grpcclient.InferenceServerClient(arguments.url) as client:
        check_ready(client, arguments.url, model=arguments.model)
        query, *sentences = embed(client, texts, model=arguments.model)
    # Embeddings have length one, so that their dot product is the cosine of the angle between them.
    print_ranking(texts, np.array(sentences) @ query)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; options may stand anywhere between the sentences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("query", nargs="?", default=QUERY, help=f"what to look for (default: {QUERY!r})")
    parser.add_argument("sentences", nargs="*", help="what to rank (default: a handful of examples)")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's host:port (default: %(default)s)")
    parser.add_argument("--model", default="minilm", help="one of the minilm models (default: %(default)s)")
    return parser.parse_intermixed_args()


def check_ready(client: grpcclient.InferenceServerClient, url: str, *, model: str) -> None:
    """Exit with advice unless the server answers and serves the model."""
    try:
        ready = client.is_model_ready(model, client_timeout=CHECK_TIMEOUT_S)
    except InferenceServerException as error:
        sys.exit(f"No server answers at {url} ({error.message()}). Start one with: make serve")
    if not ready:
        sys.exit(f"The server at {url} has no model {model!r} ready: it is loading, failed or unknown; see the log.")


def embed(client: grpcclient.InferenceServerClient, texts: Sequence[str], *, model: str) -> NDArray[np.float32]:
    """Return one embedding a text, [len(texts), 384], from a single request."""
    try:
        result = client.infer(model, tokenize(texts), client_timeout=INFER_TIMEOUT_S)
    except InferenceServerException as error:
        sys.exit(f"The server refused the request: {error.message()}")
    embeddings: NDArray[np.float32] = result.as_numpy("sentence_embedding")
    return embeddings


def tokenize(texts: Sequence[str]) -> list[grpcclient.InferInput]:
    """Turn texts into the model's inputs, padded to the longest of them."""
    if not TOKENIZER.is_file():
        sys.exit(f"{TOKENIZER} is missing. Write it with: make models")
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.enable_truncation(max_length=MAX_TOKENS)
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(texts))
    return [
        as_input("input_ids", [encoding.ids for encoding in encodings]),
        as_input("attention_mask", [encoding.attention_mask for encoding in encodings]),
    ]


def as_input(name: str, rows: Sequence[Sequence[int]]) -> grpcclient.InferInput:
    """Make one named INT64 input of equally long rows."""
    array = np.array(rows, dtype=np.int64)
    tensor = grpcclient.InferInput(name, array.shape, "INT64")
    tensor.set_data_from_numpy(array)
    return tensor


def print_ranking(texts: Sequence[str], similarities: NDArray[np.float32]) -> None:
    """Print the sentences, the most similar first; the first of the texts is the query."""
    query, *sentences = texts
    print(f"query: {query}\n")
    print("rank  similarity  sentence")
    for rank, index in enumerate(np.argsort(-similarities), start=1):
        print(f"{rank:4d}  {similarities[index]:10.3f}  {sentences[index]}")


if __name__ == "__main__":
    main()
