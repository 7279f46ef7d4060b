"""How people of other languages say the words of the nano recogniser, spelt as espeak-ng reads it in those languages.

Their r, their vowels, stops without breath and th as s, f or t are heard in much English, and in none of the English
voices of espeak-ng.
"""

from __future__ import annotations

from nano.words import WORDS

_SPELT = {
    "fr": (
        "ziro ouane tou sri forre faïve sixe sévenne éïte naïne bacouarde bède beurde catte dogue daoune follo "
        "forouarde go appi aousse leurne lefte marvine no offe onne raïte chila stoppe tri eupe vijoual ouao yèsse"
    ),
    "de": (
        "siero uann tuh frie fohr faif ßiks sewwen äit nain bäckwörd bett börd kätt dogg daun follo forwörd goh "
        "häppi haus lörn left marwin noh off onn reit schila stopp trie app wischuel wau jess"
    ),
    "es": (
        "siro uan tu sri for faif sics seven eit nain bacuard bed berd cat dog daun folou foruard gou japi jaus lern "
        "left marvin nou of on rait shila estop tri ap visual uau yes"
    ),
    "it": (
        "siro uan tu fri for faiv sics seven eit nain becuord bed berd ket dog daun follou foruord gou eppi aus lern "
        "left marvin nou off on rait scila stop tri ap visual uau ies"
    ),
    "nl": (
        "ziero wan toe srie foor faif siks sewen eet nain bekwurd bet burd ket dok daun follo forwurd goo heppie haus "
        "lurn left marvin noo of on rait sjiela stop trie ap visjuel wau jes"
    ),
    "pl": (
        "ziro łan tu fri for fajf siks sewen ejt najn bekłord bed berd ket dog dałn foloł forłord goł hepi hałs lern "
        "left marwin noł of on rajt szila stop tri ap wiżual łał jes"
    ),
    "ru": (
        "зиро уан ту сри фор файв сикс сэвен эйт найн бэкуорд бэд бёрд кэт дог даун фолоу форуорд гоу хэпи хаус лёрн "
        "лэфт марвин ноу офф он райт шила стоп три ап вижуал вау йес"
    ),
    "hi": (
        "ज़ीरो वन टू थ्री फ़ोर फ़ाइव सिक्स सेवन एट नाइन बैकवर्ड बेड बर्ड कैट डॉग डाउन फ़ॉलो फ़ॉरवर्ड गो हैप्पी हाउस लर्न "
        "लेफ़्ट मार्विन नो ऑफ़ ऑन राइट शीला स्टॉप ट्री अप विज़ुअल वाउ यस"
    ),
    "pt-br": (
        "ziro uan tu fri for faiv siks seven eit nain bécuord béd berd két dóg daun fólou fóruord gou répi raus lern "
        "léft marvin nou óf on rait xila stóp tri âp vízual uau iés"
    ),
    "ro": (
        "ziro uan tu sri for faiv sics seven eit nain becuord bed bărd chet dog daun folou foruord gou hepi haus lărn "
        "left marvin nou of on rait șila stop tri ap vijual uau ies"
    ),
    "sv": (
        "siro wann to fri får fajv sicks sevven ejt najn bäckvård bädd börd katt dågg daun fållå fårvård gå häppi "
        "haus lörn läft marvin nå åff ånn rajt sjila stopp tri app visjual vau jess"
    ),
    "fi": (
        "siro van tuu frii foor faiv siks seven eit nain bäkvöörd bed bööd kät dog daun follou forvöd gou häppi haus "
        "löön left marvin nou off on rait siila stop trii ap visual vau jes"
    ),
    "hu": (
        "ziró van tú szrí for fájv sziksz szeven éjt nájn bekvörd bed börd ket dog daun folló forvörd gó heppi hausz "
        "lörn left márvin nó of on rájt síla sztop trí áp vizsuel vau jesz"
    ),
    "cs": (
        "zíro van tů srí fór fajv siks sevn ejt najn bekvord bed berd ket dog daun folou forvord gou hepi haus lern "
        "left marvin nou of on rajt šíla stop trí ap vižual vau jes"
    ),
    "tr": (
        "ziro uan tu fri for fayv siks sevın eyt nayn bekvörd bed börd ket dog daun folov forvörd gov hepi haus lörn "
        "left marvin nov of on rayt şila stop tri app vijuıl vav yes"
    ),
    "el": (
        "ζίρο ουάν του θρι φορ φάιβ σιξ σέβεν έιτ νάιν μπάκουορντ μπεντ μπερντ κατ ντογκ ντάουν φόλοου φόργουορντ "
        "γκόου χάπι χάους λερν λεφτ μάρβιν νόου οφ ον ράιτ σίλα στοπ τρι απ βίζουαλ ουάου γες"
    ),
}

SPELLINGS = {language: dict(zip(WORDS, spelt.split(), strict=True)) for language, spelt in _SPELT.items()}
"""By espeak-ng's name of the language, then by word."""
