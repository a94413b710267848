"""Say what a picture shows, by the classes that a model on a running Preheat server finds most likely."""

import argparse
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tritonclient.utils import InferenceServerException

PICTURE = Path(__file__).resolve().with_name("coffee.jpg")
LABELS = Path(__file__).resolve().parents[1] / "model_repo" / "efficientnet" / "labels.txt"
MODELS = "efficientnet, efficientnet_compiled or efficientnet_int8"
PIXELS = 224
MARGIN = 32  # of what is scaled to 224 + 32 pixels, the model was trained to see the middle
TOP = 5
CHECK_TIMEOUT_S = 5.0
INFER_TIMEOUT_S = 60.0


def main() -> None:
    """Run from the command line."""
    arguments = parse_arguments()
    image = read_picture(arguments.picture)
    with grpcclient.InferenceServerClient(arguments.url) as client:
        check_ready(client, arguments.url, model=arguments.model)
        print_top(classify(client, image, model=arguments.model))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE, help="a file (default: a cup of coffee)")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the server's host:port (default: %(default)s)")
    parser.add_argument("--model", default="efficientnet", help=f"{MODELS} (default: %(default)s)")
    return parser.parse_args()


def read_picture(path: Path) -> NDArray[np.float32]:
    """Read a picture as the model wants it, [3, 224, 224]: the middle, scaled; 0 to 255, less 127, by 128."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        sys.exit(f"{path}: no such file.")
    except (OSError, Image.DecompressionBombError) as error:
        sys.exit(f"{path} cannot be read as a picture: {error}")
    side = min(picture.size) * PIXELS / (PIXELS + MARGIN)
    left, top = ((size - side) / 2 for size in picture.size)
    box = (left, top, left + side, top + side)
    pixels: NDArray[np.float32] = np.array(picture.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC, box), np.float32)
    pixels -= 127
    pixels /= 128
    return pixels.transpose(2, 0, 1)


def check_ready(client: grpcclient.InferenceServerClient, url: str, *, model: str) -> None:
    """Exit with advice unless the server answers and serves the model."""
    try:
        ready = client.is_model_ready(model, client_timeout=CHECK_TIMEOUT_S)
    except InferenceServerException as error:
        sys.exit(f"No server answers at {url} ({error.message()}). Start one with: make serve")
    if not ready:
        sys.exit(
            f"The server at {url} has no model {model!r} ready: it is loading, failed or unknown; see the log. "
            f"What classifies pictures is {MODELS}."
        )


def classify(
    client: grpcclient.InferenceServerClient, image: NDArray[np.float32], *, model: str
) -> NDArray[np.float64]:
    """Return the probability of each class, [1000]."""
    tensor = grpcclient.InferInput("image", [1, *image.shape], "FP32")
    tensor.set_data_from_numpy(image[np.newaxis])
    try:
        result = client.infer(model, [tensor], client_timeout=INFER_TIMEOUT_S)
    except InferenceServerException as error:
        sys.exit(f"The server refused the request: {error.message()}. What classifies pictures is {MODELS}.")
    logits: NDArray[np.float64] = result.as_numpy("logits")[0].astype(np.float64)
    probabilities: NDArray[np.float64] = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    return probabilities


def print_top(probabilities: NDArray[np.float64]) -> None:
    """Print the likeliest classes, the first first."""
    labels = LABELS.read_text(encoding="utf-8").splitlines()
    print("probability  class")
    for index in np.argsort(-probabilities)[:TOP]:
        print(f"{probabilities[index]:11.1%}  {labels[index]}")


if __name__ == "__main__":
    main()
