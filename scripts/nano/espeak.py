"""Synthetic speech by espeak-ng, from the library that the package espeakng-loader carries.

The library holds one voice for the whole process, so there is one `Espeak` in a process.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int16 = npt.NDArray[np.int16]

# speak_lib.h of espeak-ng 1.52.
_SYNCHRONOUS = 2
_APART = ord(" ") << 8
_DONT_EXIT = 0x8000
_UTF8 = 1
_RATE, _PITCH, _RANGE, _WORD_GAP = 1, 3, 4, 7
_EVENT_END, _EVENT_WORD = 0, 1

_SKIPPED = ("robosoft", "unirobot", "demonic", "whisper", "croak", "announcer", "anikarobot", "half-life")
"""Variants that hardly sound like people."""
ACCENTS = (
    "en", "en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
)  # fmt: skip


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


class _Voice(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True, slots=True)
class Manner:
    """How something is said."""

    voice: str
    """An accent, or an accent and a variant: `en-us+f3`."""
    words_a_minute: int = 175
    pitch: int = 50
    """0 to 100, as is the range."""
    pitch_range: int = 50
    gap: int = 0
    """Silence between words, in 10 ms at the usual speed."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """An utterance."""

    samples: Int16
    word_starts: tuple[int, ...]
    """In samples; of every word that espeak-ng announces, which are those of the text in order."""


class Espeak:
    """The library, loaded and ready."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        self._library.espeak_Info.restype = self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        data = str(espeakng_loader.get_data_path()).encode()
        self.rate_hz: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT)
        if self.rate_hz <= 0:
            raise OSError(f"espeak-ng does not start with its data in {data.decode()}")
        self._pieces: list[Int16] = []
        self._starts: list[int] = []
        self._callback = _Callback(self._take)  # kept, for the library calls it
        self._library.espeak_SetSynthCallback(self._callback)

    @property
    def version(self) -> str:
        """Of the library."""
        raw: bytes = self._library.espeak_Info(None)
        return raw.decode().split()[0]

    def variants(self) -> list[str]:
        """Name the variants that sound like people, in order."""
        found = []
        wanted = _Voice(languages=b"variant")
        voices = self._library.espeak_ListVoices(ctypes.byref(wanted))
        for voice in iter_until_null(voices):
            path = voice.identifier.decode()
            name = path.rpartition("/")[2]
            if path.startswith("!v/") and not name.lower().startswith(_SKIPPED):
                found.append(name)
        return sorted(found)

    def say(self, text: str, manner: Manner, seed: int = 0) -> Spoken:
        """Speak a text; some voices have breath, which is drawn by `seed`.

        Raises:
            ValueError: there is no such voice.
        """
        if self._library.espeak_SetVoiceByName(manner.voice.encode()):
            raise ValueError(f"espeak-ng has no voice {manner.voice}")
        for parameter, value in (
            (_RATE, manner.words_a_minute),
            (_PITCH, manner.pitch),
            (_RANGE, manner.pitch_range),
            (_WORD_GAP, manner.gap),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._pieces, self._starts = [], []
        raw = text.encode()
        if self._library.espeak_Synth(raw, len(raw) + 1, 0, 0, 0, _UTF8, None, None):
            raise OSError(f"espeak-ng could not say {text!r}")
        samples = np.concatenate(self._pieces) if self._pieces else np.empty(0, np.int16)
        return Spoken(samples, tuple(self._starts))

    def phones(self, text: str, voice: str = "en-us") -> list[str]:
        """Return how a voice says a text: phones by espeak-ng's names, without stress and variants."""
        self._library.espeak_SetVoiceByName(voice.encode())
        raw = ctypes.create_string_buffer(text.encode())  # the library goes through it, so it has to stay
        rest = ctypes.c_void_p(ctypes.addressof(raw))
        said = self._library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _APART).decode()
        plain = (phone.strip("',%=").rstrip("#2") for phone in said.replace("_", " ").split())
        return [phone for phone in plain if phone]

    def _take(
        self, wave: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]
    ) -> int:
        index = 0
        while events[index].type != _EVENT_END:
            if events[index].type == _EVENT_WORD:
                self._starts.append(events[index].sample)
            index += 1
        if wave and count > 0:
            self._pieces.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0


def iter_until_null(array: ctypes._Pointer[ctypes._Pointer[_Voice]]) -> list[_Voice]:
    """Return what an array of pointers that ends with NULL points to."""
    found = []
    index = 0
    while array[index]:
        found.append(array[index].contents)
        index += 1
    return found
