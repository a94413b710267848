"""Real text for the tests: sentences from one word to a paragraph, and the tokens that clients send for them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

SENTENCES = (
    "Rain.",
    "Why?",
    "Good morning!",
    "The kettle is boiling.",
    "He never learned to swim.",
    "Two plus two is four.",
    "Our train was cancelled again.",
    "A cat sleeps on the warm bonnet of the car.",
    "The cat has curled up on top of the car's engine, where it is warm.",
    "Interest rates rose for the third time this year.",
    "The central bank has made borrowing more expensive once more.",
    "How do I reset the password of my account?",
    "I forgot my login and cannot get into my account any more.",
    "Mount the disk before you start the backup, or it will write to the wrong place.",
    "She plays the cello in an orchestra that meets on Thursdays.",
    "Every Thursday evening the orchestra rehearses, and she is its cellist.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "Plants make their own food from sunlight.",
    "The referee showed a yellow card, and the whole stadium groaned.",
    "Fold the egg whites in gently, so that the batter keeps its air.",
    "for index, row in enumerate(table): print(index, row)",
    "ERROR 2024-03-09T11:42:07Z worker-17: connection reset by peer (attempt 3 of 5)",
    "Please send 250 g of saffron to 14b Harbour Lane, flat 3, by the 9th.",
    "L'été dernier, nous avons traversé les Alpes à vélo.",
    "Der Zug nach München fährt heute von Gleis sieben.",
    "昨日は一日中雨が降っていました。",
    'Well... that\'s (as they say) "not ideal" -- is it?',
    "The old lighthouse keeper climbed the stairs each evening to light a lamp that no ship had needed for years.",
    "Water expands when it freezes, which is why a full bottle bursts in the freezer.",
    "A full bottle left in the freezer breaks, because ice takes more room than water.",
    "My grandmother's recipe says to knead the dough until it feels like an earlobe.",
    "The parliament postponed its vote on the fishing quotas until the autumn session.",
    "Turn left at the pharmacy, go straight on for two blocks, and you will see the museum on your right.",
    "The vaccine needs to be kept cold from the factory to the clinic, which is hard where the power fails every day.",
    "A request that waits in a full queue past its deadline should be answered with an error, not dropped in silence.",
    "When the river flooded, the village moved the library's books to the church tower, one shelf at a time, and "
    "half of them came back with notes in the margins that nobody could remember having written.",
    "The experiment was repeated forty times, at four temperatures and two pressures, and although every single run "
    "gave a slightly different yield, none of them came near the figure that the first group had published, which is "
    "why we wrote to them and asked for a sample of their catalyst.",
    "If you are reading this in a museum, you may wonder what the small holes along the edge of the tablet are for; so "
    "do we. They are too shallow to have held pegs, too regular to be damage, and they stop exactly where the writing "
    "begins, as if someone had counted out the lines before there was anything to say.",
    "We set out before dawn, because the pass closes at noon when the snow grows soft, and we walked without talking "
    "until the sun reached the far wall of the valley. The first hut was shut. At the second a man sold us tea and "
    "told us that the bridge was gone, that his brother would take us across for the price of a sheep, and that we "
    "should not believe anyone who asked for less. By the time we had argued, crossed, and dried our boots at his "
    "brother's stove, the pass had closed, and we spent the night listening to a radio play in a language none of us "
    "understood, all of us laughing at the same moments.",
    "Done.",
)

_TOKENIZER_FILE = Path(__file__).resolve().parents[1] / "model_repo" / "minilm" / "tokenizer.json"
_MAX_SEQUENCE = 512


def tokenize(sentences: Sequence[str], *, tokenizer_file: Path = _TOKENIZER_FILE) -> dict[str, NDArray[np.int64]]:
    """Return `input_ids` and `attention_mask` as minilm's clients send them.

    Both are int64 [len(sentences), tokens of the longest], cut to 512.
    """
    encodings = _tokenizer(tokenizer_file).encode_batch(list(sentences))
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
    }


@cache
def _tokenizer(file: Path) -> Tokenizer:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found; write it with: python model_repo/materialize.py")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(max_length=_MAX_SEQUENCE)
    tokenizer.enable_padding()  # to the longest of the batch; the file itself says 128
    return tokenizer
