"""Text to samples through the real commands, on files of odd dimensions, against code that is not theirs.

Weights come out of the files by the packages of their formats.  The backbone is compared with transformers' Mistral,
fed the codes that vx-flow made; the flow head with its equations, written here again in float64; the codec with one
call of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from asr_models import ids_of, joined
from preloaded import run_preloaded, shell_preloaded
from processes import environment, frames
from reference_models import half_split
from safetensors.torch import load_file
from transformers import MistralConfig, MistralModel
from tts_checkpoints import ODD, PACKABLE, VOICES, make, values

from voxtral_pipes.config import BackboneConfig, FlowConfig, TtsConfig
from voxtral_pipes.formats.tekken import Tekken
from voxtral_pipes.models.codec import Codec
from voxtral_pipes.models.random_tts import NEVER, Format

Array = npt.NDArray[np.float32]
Tensors = Mapping[str, torch.Tensor]
TEXT = "Paris is a beautiful city, and the water is cold."
VOICE = "casual_male"
FRAMES = 30
GRID = [(1, 1.0), (3, 1.2), (7, 1.0), (7, 1.2)]
"""With those of `RUNS`, steps 1, 3 and 7 at guidance 1.0 and 1.2."""


@dataclass(frozen=True)
class Spoken:
    """One pipe and everything that flowed through it."""

    home: Path
    config: TtsConfig
    steps: int
    guidance: float
    folder: Path

    def rows(self, name: str, tensor: str) -> Array:
        return joined(frames((self.folder / f"{name}.vx").read_bytes()), tensor)

    @property
    def noise(self) -> Array:
        noise: Array = np.load(self.folder / "noise.npy")
        return noise


RUNS: dict[str, tuple[Format, TtsConfig, str, int, float]] = {
    # Without -n it is what params.json says.
    "safetensors": ("safetensors", ODD, "", ODD.flow.steps, 1.2),
    "gguf-q4": ("gguf-q4", PACKABLE, "-n 3 --cfg 1.0", 3, 1.0),
    "gguf-q8": ("gguf-q8", PACKABLE, "-n 1", 1, 1.2),
}


def speak(folder: Path, name: str) -> Spoken:
    format, config, options, steps, guidance = RUNS[name]
    home = make(folder / "model", config, format, end_gain=NEVER)
    rng = np.random.default_rng(len(name))
    noise = rng.standard_normal((FRAMES, config.flow.acoustic_dim)).astype(np.float32)
    np.save(folder / "noise.npy", noise)
    line = (
        f"echo '{TEXT}' | vx-tokenize | tee ids.vx | vx-backbone -q --voice {VOICE} --max-frames {FRAMES} "
        f"| tee hidden.vx | vx-flow {options} --noise noise.npy | tee codes.vx | vx-codec --format f32 > out.wav"
    )
    done = shell_preloaded(line, cwd=folder, VX_TTS_MODEL=str(home))
    assert (done.returncode, done.stderr) == (0, b"")
    return Spoken(home, config, steps, guidance, folder)


@pytest.fixture(scope="module")
def spoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Spoken]:
    return cache(lambda name: speak(tmp_path_factory.mktemp(name), name))


@pytest.fixture(scope="module", params=list(RUNS))
def spoken(request: pytest.FixtureRequest, spoke: Callable[[str], Spoken]) -> Spoken:
    return spoke(request.param)


@pytest.fixture(scope="module")
def odd(spoke: Callable[[str], Spoken]) -> Spoken:
    """The pipe on safetensors, of which several tests run a part again in other ways."""
    return spoke("safetensors")


# --- the backbone


NAMES = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def mistral(tensors: Tensors, config: BackboneConfig) -> MistralModel:
    model = MistralModel(
        MistralConfig(
            hidden_size=config.dim, intermediate_size=config.hidden_dim, num_hidden_layers=config.n_layers,
            vocab_size=config.vocab_size, num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim, sliding_window=None, rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_theta": config.rope_theta, "rope_type": "default"},
        )
    )  # fmt: skip
    state = {
        "embed_tokens.weight": tensors["mm_audio_embeddings.tok_embeddings.weight"],
        "norm.weight": tensors["norm.weight"],
    }
    for i in range(config.n_layers):
        for ours, theirs in NAMES.items():
            weight = tensors[f"layers.{i}.{ours}.weight"]
            turned = ours in ("attention.wq", "attention.wk")
            state[f"layers.{i}.{theirs}.weight"] = half_split(weight, config.head_dim) if turned else weight
    model.load_state_dict(state, strict=True)
    return model.float().eval()


def voice_rows(home: Path) -> torch.Tensor:
    folder = home / "voice_embedding"
    if (folder / f"{VOICE}.pt").exists():
        rows: torch.Tensor = torch.load(folder / f"{VOICE}.pt", weights_only=True)
        return rows.float()
    return load_file(folder / f"{VOICE}.safetensors")["embedding"].float()


def inputs(home: Path, tensors: Tensors, config: BackboneConfig, codes: Array) -> tuple[torch.Tensor, int]:
    """Embed the prompt of tts.md section 3 and the frames of section 7; return them and the prompt's length."""
    text = Tekken.read(home / "tekken.json").encode(TEXT)
    table = tensors["mm_audio_embeddings.tok_embeddings.weight"]
    voice = voice_rows(home)
    assert len(voice) == VOICES[VOICE]
    start = torch.cat((table[[1, 25]], voice, table[[36, *text, 35, 25]]))
    table = tensors["mm_audio_embeddings.audio_codebook_embeddings.embeddings.weight"]
    first, each = config.semantic_size + 2, config.acoustic_levels + 2
    sums = [
        sum(table[first * (k > 0) + each * max(k - 1, 0) + int(code)] for k, code in enumerate(row))
        for row in codes
    ]
    return torch.cat((start, torch.stack(sums[:-1]))), len(start)  # type: ignore[arg-type]


def test_text_arrives_as_its_ids(spoken: Spoken) -> None:
    got = ids_of(frames((spoken.folder / "ids.vx").read_bytes()))
    assert got == Tekken.read(spoken.home / "tekken.json").encode(TEXT) and min(got) >= 1000


def test_hidden_states_equal_mistral_in_transformers(spoken: Spoken) -> None:
    tensors, config = values(spoken.home), spoken.config.backbone
    codes, hidden = spoken.rows("codes", "codes"), spoken.rows("hidden", "hidden")
    assert hidden.shape == (FRAMES, config.dim) and codes.shape == (FRAMES, 1 + config.acoustic_dim)
    x, prompt = inputs(spoken.home, tensors, config, codes)
    with torch.no_grad():
        expected = mistral(tensors, config)(inputs_embeds=x[None]).last_hidden_state[0, prompt - 1 :].numpy()
    np.testing.assert_allclose(hidden, expected, atol=1e-4, rtol=0)
    assert np.abs(expected).max() < 20 and np.abs(expected - expected[0]).max() > 0.1
    hello = frames((spoken.folder / "hidden.vx").read_bytes())[0]
    assert hello.fields["out"]["hidden"] == {"d": "f32", "h": [-1, config.dim]}


# --- the flow head


class Equations:
    """tts.md sections 5 and 6 in float64, a row of everything a frame, all frames at once."""

    def __init__(self, tensors: Tensors, config: FlowConfig) -> None:
        self._config = config
        prefix = "acoustic_transformer."
        self._w = {
            name.removeprefix(prefix).removesuffix(".weight"): tensor.double()
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = hidden @ self._w["semantic_codebook_output"].T
        logits[:, 0] = -math.inf
        logits[:, self._config.semantic_size + 2 :] = -math.inf
        return logits

    def acoustic(self, hidden: torch.Tensor, x: torch.Tensor, steps: int, guidance: float) -> torch.Tensor:
        """Return levels before rounding, 0 to levels - 1."""
        for i in range(steps):
            guided, free = self._velocity(x, i / steps, hidden), self._velocity(x, i / steps, 0 * hidden)
            x = x + (guidance * guided + (1 - guidance) * free) / steps
        return (self._config.acoustic_levels - 1) / 2 * (x.clamp(-1, 1) + 1)

    def _velocity(self, x: torch.Tensor, t: float, hidden: torch.Tensor) -> torch.Tensor:
        w, half = self._w, self._config.dim // 2
        angles = t * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        time = torch.cat((angles.cos(), angles.sin())) @ w["time_projection"].T
        y = torch.stack(
            (
                x @ w["input_projection"].T,
                time.expand(len(x), -1),
                hidden @ w["llm_projection"].T,
            ),
            dim=1,
        )
        for i in range(self._config.n_layers):
            y = self._layer(y, f"layers.{i}.")
        return self._norm(y[:, 0], "norm") @ w["acoustic_codebook_output"].T

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self._config.norm_eps).sqrt() * self._w[name]

    def _layer(self, y: torch.Tensor, at: str) -> torch.Tensor:
        w, config = self._w, self._config
        n = self._norm(y, f"{at}attention_norm")
        q, k, v = (
            (n @ w[f"{at}attention.{name}"].T).unflatten(-1, (-1, config.head_dim))
            for name in ("wq", "wk", "wv")
        )
        shared = torch.arange(config.n_heads) // (config.n_heads // config.n_kv_heads)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k[:, :, shared]) / math.sqrt(config.head_dim)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v[:, :, shared])
        y = y + mixed.flatten(2) @ w[f"{at}attention.wo"].T
        m = self._norm(y, f"{at}ffn_norm")
        gate, up = (m @ w[f"{at}feed_forward.{name}"].T for name in ("w1", "w3"))
        return y + (F.silu(gate) * up) @ w[f"{at}feed_forward.w2"].T


def compare_codes(spoken: Spoken, codes: Array, steps: int, guidance: float) -> torch.Tensor:
    """Codes must be the nearest levels, and the best semantic ones, up to ties; return the levels."""
    equations = Equations(values(spoken.home), spoken.config.flow)
    hidden = torch.from_numpy(spoken.rows("hidden", "hidden")).double()
    got = torch.from_numpy(codes).long()
    assert got.shape == (FRAMES, 1 + spoken.config.flow.acoustic_dim)
    logits = equations.logits(hidden)
    chosen = logits.gather(1, got[:, :1])[:, 0]
    assert bool((chosen >= logits.max(1).values - 1e-3).all())
    levels = equations.acoustic(hidden, torch.from_numpy(spoken.noise).double(), steps, guidance)
    assert float((levels - (got[:, 1:] - 2)).abs().max()) < 0.5 + 1e-3
    assert float((levels.round() == got[:, 1:] - 2).double().mean()) > 0.98
    assert len(got.unique()) > 12 and len(got[:, 0].unique()) > 5  # a constant would prove nothing
    return levels


def test_codes_are_those_of_the_equations(spoken: Spoken) -> None:
    compare_codes(spoken, spoken.rows("codes", "codes"), spoken.steps, spoken.guidance)


def test_codes_at_other_steps_and_guidance(odd: Spoken) -> None:
    """Each from the saved hidden states; vx-backbone's socket is gone, of which vx-flow warns."""
    sent, noise = (odd.folder / "hidden.vx").read_bytes(), odd.folder / "noise.npy"
    for steps, guidance in GRID:
        options = ("-q", "-n", str(steps), "--cfg", str(guidance), "--noise", noise)
        done = run_preloaded("vx-flow", options, environment(VX_TTS_MODEL=str(odd.home)), sent)
        assert (done.returncode, done.stderr) == (0, b"")
        (odd.folder / f"{steps}-{guidance}.vx").write_bytes(done.stdout)
    levels = [
        compare_codes(odd, odd.rows(f"{steps}-{guidance}", "codes"), steps, guidance)
        for steps, guidance in GRID
    ]
    least = min(float((a - b).abs().max()) for i, a in enumerate(levels) for b in levels[:i])
    assert least > 0.3  # no two of them could be taken for one another


# --- the codec


def samples_of(path: Path) -> Array:
    data = path.read_bytes()
    assert data[:4] == b"RIFF" and data[20:22] == b"\x03\0"
    return np.frombuffer(data[data.index(b"data") + 8 :], "<f4")


def test_samples_are_those_of_one_call(spoken: Spoken) -> None:
    codes = torch.from_numpy(spoken.rows("codes", "codes")).long()
    codec = Codec.of(dict(values(spoken.home)), spoken.config.codec)
    expected = codec.step(codec.new_state(), codes[None])[0][0].numpy()
    got = samples_of(spoken.folder / "out.wav")
    assert len(got) == FRAMES * 1920 and np.abs(expected).max() > 0.05
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


# --- bfloat16


def test_bf16_runs_and_stays_near(odd: Spoken) -> None:
    """The same codes into the backbone, and into the codec; what vx-flow makes of nearly equal hidden states.

    More frames than the model has positions are no more memory.
    """
    line = (
        "vx-codec --dtype bf16 --format f32 < codes.vx > out16.wav & "
        "vx-backbone -q --dtype bf16 --voice casual_male --codes codes.vx --max-frames 2000000000 < ids.vx "
        "| tee hidden16.vx | vx-flow --dtype bf16 --noise noise.npy > codes16.vx; wait"
    )
    done = shell_preloaded(line, cwd=odd.folder, VX_TTS_MODEL=str(odd.home))
    assert (done.returncode, done.stderr) == (0, b"")
    hello = frames((odd.folder / "hidden16.vx").read_bytes())[0]
    assert hello.fields["out"]["hidden"] == {"d": "bf16", "h": [-1, 52]}
    wide, narrow = (odd.rows(name, "hidden") for name in ("hidden", "hidden16"))
    assert apart(wide, narrow) < 0.03
    wide, narrow = (odd.rows(name, "codes") for name in ("codes", "codes16"))
    assert (wide[:, 0] == narrow[:, 0]).mean() > 0.7 and (np.abs(wide - narrow)[:, 1:] <= 1).mean() > 0.9
    assert apart(samples_of(odd.folder / "out.wav"), samples_of(odd.folder / "out16.wav")) < 0.05


def apart(wide: Array, narrow: Array) -> float:
    """Return how far they are apart, as a part of their size; they must not be equal."""
    assert wide.shape == narrow.shape and (wide != narrow).any()
    return float(np.linalg.norm(wide - narrow) / np.linalg.norm(wide))
