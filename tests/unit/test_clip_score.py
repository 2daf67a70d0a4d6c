"""CLIP scores against cosines that are worked out by hand, with a small CLIP whose weights are random."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

import tiny
import tiny_pia
from vivant.errors import LoadError
from vivant.evaluate.clip_score import DEVIATION, MEAN, ClipScorer
from vivant.text.clip import save_tokenizer

SIDE, PROMPT = 32, "a cat in a field"


@pytest.fixture(scope="module")
def scorer() -> ClipScorer:
    tokenizer = tiny_pia.pipeline().tokenizer
    text = {"vocab_size": 200, "hidden_size": 20, "intermediate_size": 24, "num_attention_heads": 2}
    vision = {"hidden_size": 24, "intermediate_size": 28, "num_attention_heads": 3, "image_size": SIDE, "patch_size": 8}
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPConfig(
        text_config={**text, **marks, "num_hidden_layers": 2},
        vision_config={**vision, "num_hidden_layers": 2},
        projection_dim=12,
    )
    return ClipScorer(tiny.fill(CLIPModel(config)), tokenizer)


def frames(num: int = 4, h: int = 40, w: int = 56) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (num, h, w, 3), dtype=np.uint8)


def cosines(scorer: ClipScorer, pictures: np.ndarray, *, square: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every picture with the first one, and with the prompt, by the whole model."""
    seen = []
    for picture in pictures:
        image = Image.fromarray(picture)
        if square:  # 40 x 56 becomes 32 x 44, of which 6 columns are cut off on either side
            image = image.resize((44, 32), Image.Resampling.BICUBIC).crop((6, 0, 38, 32))
        pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float64) / 255
        seen.append((pixels - MEAN) / DEVIATION)
    values = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).float()
    tokens = scorer.tokenizer([PROMPT], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        out = scorer.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=values)
    image, text = (e / e.norm(dim=-1, keepdim=True) for e in (out.image_embeds, out.text_embeds))
    return image @ image[0], image @ text[0]


def test_scores_are_cosines(scorer):
    clip, picture = frames(), frames(1)[0][::-1].copy()
    found = scorer.score(clip, picture, PROMPT, cond_frame=1)
    image, text = cosines(scorer, np.stack([picture, *clip]), square=True)
    assert found.published_image == pytest.approx(100 * image[1:].mean().item(), abs=0.01)
    assert found.published_text == pytest.approx(100 * text[1:].mean().item(), abs=0.01)
    image, text = cosines(scorer, np.stack([picture, *clip]), square=False)
    assert found.image == pytest.approx(100 * image[[1, 3, 4]].mean().item(), abs=0.01)
    assert found.text == pytest.approx(100 * text[1:].mean().item(), abs=0.01)
    assert found.text_gain == pytest.approx(100 * (text[1:].mean() - text[0]).item(), abs=0.01)
    assert abs(found.image - found.published_image) > 0.1
    assert abs(found.text - found.published_text) > 0.1


def test_a_frozen_clip_gains_nothing(scorer):
    still = frames(1)
    found = scorer.score(np.repeat(still, 5, axis=0), still[0], PROMPT)
    assert found.published_image == pytest.approx(100, abs=1e-3)
    assert found.text_gain == pytest.approx(0, abs=1e-3)


def test_a_model_is_read_from_its_folder(scorer, tmp_path):
    scorer.model.save_pretrained(tmp_path)
    save_tokenizer(scorer.tokenizer, tmp_path)
    again = ClipScorer.from_pretrained(tmp_path, local_files_only=True)
    assert again.score(frames(), frames(1)[0], PROMPT) == scorer.score(frames(), frames(1)[0], PROMPT)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="E-CLIP-MODEL"):
        ClipScorer.from_pretrained(tmp_path, local_files_only=True)
