"""The languages of M2M100 under other codes and in English: a table, and nothing but its reading.

A row has M2M100's code, other codes of the same language, and its names: in English, and a few in
the language itself. The other codes are those of ISO 639-2 and 639-3, those of FLORES and NLLB
without their scripts, and codes that ISO has withdrawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = ["MEANINGS", "NAMES", "SHOWN", "LanguageTable", "read_table"]

_TABLE: Final = """
af: afr: Afrikaans
am: amh: Amharic
ar: ara arb arz apc ajp acm acq aeb ars ary: Arabic, Modern Standard Arabic, العربية
ast: : Asturian
az: aze azj: Azerbaijani
ba: bak: Bashkir
be: bel: Belarusian
bg: bul: Bulgarian
bn: ben: Bangla, Bengali
br: bre: Breton
bs: bos sh hbs: Bosnian, Serbo-Croatian
ca: cat: Catalan, Valencian
ceb: : Cebuano
cs: ces cze: Czech
cy: cym wel: Welsh
da: dan: Danish
de: deu ger: German, Deutsch
el: ell gre: Greek, Modern Greek, Ελληνικά
en: eng: English
es: spa: Spanish, Castilian, Español
et: est ekk: Estonian
fa: fas per pes prs: Persian, Farsi, Dari
ff: ful fuv: Fula, Fulah
fi: fin: Finnish
fr: fra fre: French, Français
fy: fry: Western Frisian, Frisian
ga: gle: Irish
gd: gla: Scottish Gaelic, Gaelic
gl: glg: Galician
gu: guj: Gujarati
ha: hau: Hausa
he: heb iw: Hebrew
hi: hin: Hindi, हिन्दी
hr: hrv sh hbs: Croatian, Serbo-Croatian
ht: hat: Haitian Creole, Haitian
hu: hun: Hungarian
hy: hye arm: Armenian
id: ind in: Indonesian
ig: ibo: Igbo
ilo: : Iloko, Ilocano
is: isl ice: Icelandic
it: ita: Italian, Italiano
ja: jpn: Japanese, 日本語
jv: jav jw: Javanese
ka: kat geo: Georgian
kk: kaz: Kazakh
km: khm: Khmer, Central Khmer
kn: kan: Kannada
ko: kor: Korean, 한국어
lb: ltz: Luxembourgish, Luxembourgeois
lg: lug: Ganda, Luganda
ln: lin: Lingala
lo: lao: Lao
lt: lit: Lithuanian
lv: lav lvs: Latvian
mg: mlg plt: Malagasy
mk: mkd mac: Macedonian
ml: mal: Malayalam
mn: mon khk: Mongolian
mr: mar: Marathi
ms: msa may zsm: Malay
my: mya bur: Burmese, Myanmar
ne: nep npi: Nepali
nl: nld dut: Dutch, Flemish, Nederlands
no: nor nb nn nob nno: Norwegian, Bokmål, Nynorsk
ns: nso: Northern Sotho, Sepedi
oc: oci: Occitan, Provençal
or: ori ory: Odia, Oriya
pa: pan: Punjabi, Panjabi
pl: pol: Polish, Polski
ps: pus pbt: Pashto, Pushto
pt: por: Portuguese, Português
ro: ron rum mo: Romanian, Moldavian
ru: rus: Russian, Русский
sd: snd: Sindhi
si: sin: Sinhala, Sinhalese
sk: slk slo: Slovak
sl: slv: Slovenian
so: som: Somali
sq: sqi alb als: Albanian
sr: srp sh hbs: Serbian, Serbo-Croatian
ss: ssw: Swati, Swazi
su: sun: Sundanese
sv: swe: Swedish, Svenska
sw: swa swh: Swahili
ta: tam: Tamil
th: tha: Thai
tl: tgl fil: Tagalog, Filipino
tn: tsn: Tswana
tr: tur: Turkish, Türkçe
uk: ukr: Ukrainian, Українська
ur: urd: Urdu
uz: uzb uzn: Uzbek
vi: vie: Vietnamese
wo: wol: Wolof
xh: xho: Xhosa
yi: yid ji ydd: Yiddish
yo: yor: Yoruba
zh: zho chi cmn: Chinese, Mandarin, 中文
zu: zul: Zulu
"""


class LanguageTable(NamedTuple):
    """A table of languages.

    Attributes:
        meanings: the codes that each other code stands for: several where it covers several.
        names: the codes of each name, in lower case.
        shown: the first name of each code.
    """

    meanings: Mapping[str, tuple[str, ...]]
    names: Mapping[str, tuple[str, ...]]
    shown: Mapping[str, str]


def read_table(table: str) -> LanguageTable:
    """Reads rows of a code, other codes and names, with colons between them."""
    meanings: dict[str, tuple[str, ...]] = {}
    names: dict[str, tuple[str, ...]] = {}
    shown: dict[str, str] = {}
    for row in table.strip().splitlines():
        code, others, called = (part.strip() for part in row.split(":"))
        shown[code] = called.partition(", ")[0]
        for other in others.split():
            meanings[other] = (*meanings.get(other, ()), code)
        for name in called.lower().split(", "):
            names[name] = (*names.get(name, ()), code)
    return LanguageTable(meanings, names, shown)


MEANINGS, NAMES, SHOWN = read_table(_TABLE)
