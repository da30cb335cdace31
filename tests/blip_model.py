"""A BLIP of real classes with a few thousand random weights, for tests."""

from __future__ import annotations

from pathlib import Path


def make_blip(folder: Path) -> Path:
    """Saves model, tokenizer and image processor in `folder`, and returns it."""
    import torch
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForImageTextRetrieval,
        BlipImageProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "an", "the", "of", "in", "photo"]
    words += ["picture", "red", "apple", "dog", "orange", "chair", "snow", "bicycle", "elephant"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tower = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    torch.manual_seed(3)
    model = BlipForImageTextRetrieval(
        BlipConfig(
            text_config=tower | {
                "vocab_size": len(words), "max_position_embeddings": 48, "encoder_hidden_size": 32,
                "bos_token_id": 2, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3,
            },
            vision_config=tower | {"image_size": 32, "patch_size": 16},
            image_text_hidden_size=16,
        )
    )  # fmt: skip
    with torch.no_grad():  # freshly initialised weights give almost equal features
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    for component in (
        model,
        BertTokenizer(str(folder / "vocab.txt")),
        BlipImageProcessor(size={"height": 32, "width": 32}),
    ):
        component.save_pretrained(folder)
    return folder
