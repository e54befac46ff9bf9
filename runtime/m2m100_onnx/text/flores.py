"""The languages of FLORES-200 under other codes and in English: tables, and nothing but reading.

A row has the code that FLORES uses, which is that of ISO 639-3; other codes of the same language;
and its English names, the first of which is shown. The other codes are those of BCP 47, ISO 639-1
and ISO 639-2, withdrawn ones, and the macrolanguage (`ar`, `fa`, `ms`, `zh`) where CLDR takes it
for this language, or where FLORES has no other language of it (`ps`, `qu`). Behind the languages of
FLORES are those that ISO 639-1 has as well, for checkpoints that were extended. Names are those of
CLDR and ISO 639-3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from m2m100_onnx.text.language_names import read_table

__all__ = [
    "ARABIC_REGIONS",
    "LIKELY_SCRIPTS",
    "MACROLANGUAGES",
    "MEANINGS",
    "NAMES",
    "SCRIPTS",
    "SCRIPTS_OF_REGIONS",
    "SHOWN",
]

_TABLE: Final = """
ace: : Acehnese, Achinese
acm: : Mesopotamian Arabic, Iraqi Arabic
acq: : Ta'izzi-Adeni Arabic
aeb: : Tunisian Arabic
afr: af: Afrikaans
ajp: : South Levantine Arabic, Levantine Arabic
aka: ak: Akan
amh: am: Amharic
apc: : North Levantine Arabic, Levantine Arabic
arb: ar ara: Arabic, Standard Arabic, Modern Standard Arabic
ars: : Najdi Arabic
ary: : Moroccan Arabic
arz: : Egyptian Arabic
asm: as: Assamese
ast: : Asturian
awa: : Awadhi
ayr: ay aym: Central Aymara, Aymara
azb: : South Azerbaijani
azj: az aze: North Azerbaijani, Azerbaijani
bak: ba: Bashkir
bam: bm: Bambara
ban: : Balinese
bel: be: Belarusian
bem: : Bemba
ben: bn: Bengali, Bangla
bho: : Bhojpuri
bjn: : Banjar, Banjarese
bod: bo tib: Tibetan, Standard Tibetan
bos: bs sh hbs: Bosnian, Serbo-Croatian
bug: : Buginese, Bugis
bul: bg: Bulgarian
cat: ca: Catalan, Valencian
ceb: : Cebuano
ces: cs cze: Czech
cjk: : Chokwe
ckb: : Central Kurdish, Sorani
crh: : Crimean Tatar
cym: cy wel: Welsh
dan: da: Danish
deu: de ger: German
dik: din: Southwestern Dinka, Dinka
dyu: : Dyula, Dioula
dzo: dz: Dzongkha
ell: el gre: Greek, Modern Greek
eng: en: English
epo: eo: Esperanto
est: et ekk: Estonian
eus: eu baq: Basque
ewe: ee: Ewe
fao: fo: Faroese
fij: fj: Fijian
fin: fi: Finnish
fon: : Fon
fra: fr fre: French
fur: : Friulian
fuv: ff ful: Nigerian Fulfulde, Fulfulde, Fula, Fulah
gaz: om orm: West Central Oromo, Oromo
gla: gd: Scottish Gaelic, Gaelic
gle: ga: Irish
glg: gl: Galician
grn: gn gug: Guarani
guj: gu: Gujarati
hat: ht: Haitian Creole, Haitian
hau: ha: Hausa
heb: he iw: Hebrew
hin: hi: Hindi
hne: : Chhattisgarhi
hrv: hr sh hbs scr: Croatian, Serbo-Croatian
hun: hu: Hungarian
hye: hy arm: Armenian
ibo: ig: Igbo
ilo: : Iloko, Ilocano
ind: id in: Indonesian
isl: is ice: Icelandic
ita: it: Italian
jav: jv jw: Javanese
jpn: ja: Japanese
kab: : Kabyle
kac: : Kachin, Jingpho
kam: : Kamba
kan: kn: Kannada
kas: ks: Kashmiri
kat: ka geo: Georgian
kaz: kk: Kazakh
kbp: : Kabiyè, Kabiye
kea: : Kabuverdianu
khk: mn mon: Halh Mongolian, Mongolian, Khalkha Mongolian
khm: km: Khmer, Central Khmer
kik: ki: Kikuyu, Gikuyu
kin: rw: Kinyarwanda
kir: ky: Kyrgyz, Kirghiz
kmb: : Kimbundu
kmr: ku kur: Northern Kurdish, Kurdish, Kurmanji
knc: kr kau: Central Kanuri, Kanuri
kon: kg kng: Kongo, Kikongo
kor: ko: Korean
lao: lo: Lao
lij: : Ligurian
lim: li: Limburgish, Limburgan
lin: ln: Lingala
lit: lt: Lithuanian
lmo: : Lombard
ltg: : Latgalian
ltz: lb: Luxembourgish
lua: : Luba-Lulua, Luba-Kasai, Tshiluba
lug: lg: Ganda, Luganda
luo: : Luo, Dholuo
lus: : Mizo, Lushai
lvs: lv lav: Standard Latvian, Latvian
mag: : Magahi
mai: : Maithili
mal: ml: Malayalam
mar: mr: Marathi
min: : Minangkabau
mkd: mk mac: Macedonian
mlt: mt: Maltese
mni: : Manipuri, Meitei
mos: : Mossi
mri: mi mao: Māori, Maori
mya: my bur: Burmese, Myanmar
nld: nl dut: Dutch, Flemish
nno: nn: Norwegian Nynorsk, Nynorsk
nob: nb no nor: Norwegian Bokmål, Bokmål, Norwegian
npi: ne nep: Nepali
nso: : Northern Sotho, Sepedi, Pedi, Sotho
nus: : Nuer
nya: ny: Nyanja, Chichewa, Chewa
oci: oc: Occitan, Provençal
ory: or ori: Odia, Oriya
pag: : Pangasinan
pan: pa: Punjabi, Panjabi, Eastern Panjabi
pap: : Papiamento
pbt: ps pus: Southern Pashto, Pashto, Pushto
pes: fa fas per: Iranian Persian, Persian, Farsi, Western Persian
plt: mg mlg: Plateau Malagasy, Malagasy
pol: pl: Polish
por: pt: Portuguese
prs: fa-AF: Dari, Afghan Persian
quy: qu que: Ayacucho Quechua, Quechua
ron: ro rum mo mol: Romanian, Moldavian
run: rn: Rundi, Kirundi
rus: ru: Russian
sag: sg: Sango
san: sa: Sanskrit
sat: : Santali
scn: : Sicilian
shn: : Shan
sin: si: Sinhala, Sinhalese
slk: sk slo: Slovak
slv: sl: Slovenian
smo: sm: Samoan
sna: sn: Shona
snd: sd: Sindhi
som: so: Somali
sot: st: Southern Sotho, Sesotho, Sotho
spa: es: Spanish, Castilian
als: sq sqi alb: Tosk Albanian, Albanian
srd: sc src: Sardinian
srp: sr sh hbs scc: Serbian, Serbo-Croatian
ssw: ss: Swati, Swazi
sun: su: Sundanese
swe: sv: Swedish
swh: sw swa: Swahili
szl: : Silesian
tam: ta: Tamil
taq: tmh: Tamasheq
tat: tt: Tatar
tel: te: Telugu
tgk: tg: Tajik
tgl: tl fil: Tagalog, Filipino
tha: th: Thai
tir: ti: Tigrinya
tpi: : Tok Pisin
tsn: tn: Tswana, Setswana
tso: ts: Tsonga
tuk: tk: Turkmen
tum: : Tumbuka
tur: tr: Turkish
twi: tw: Twi
tzm: : Central Atlas Tamazight, Tamazight
uig: ug: Uyghur, Uighur
ukr: uk: Ukrainian
umb: : Umbundu
urd: ur: Urdu
uzn: uz uzb: Northern Uzbek, Uzbek
vec: : Venetian
vie: vi: Vietnamese
war: : Waray
wol: wo: Wolof
xho: xh: Xhosa
ydd: yi yid ji: Eastern Yiddish, Yiddish
yor: yo: Yoruba
yue: : Cantonese, Yue Chinese
zho: zh chi cmn: Chinese, Mandarin, Mandarin Chinese
zsm: ms msa may: Standard Malay, Malay
zul: zu: Zulu
aar: aa: Afar
abk: ab: Abkhazian, Abkhaz
arg: an: Aragonese
ava: av: Avaric, Avar
bis: bi: Bislama
bre: br: Breton
cha: ch: Chamorro
che: ce: Chechen
chu: cu: Church Slavic
chv: cv: Chuvash
cor: kw: Cornish
cos: co: Corsican
cre: cr: Cree
div: dv: Divehi, Dhivehi
fry: fy: Western Frisian, Frisian
glv: gv: Manx
her: hz: Herero
hmo: ho: Hiri Motu
ido: io: Ido
iii: ii: Sichuan Yi
iku: iu: Inuktitut
ile: ie: Interlingue
ina: ia: Interlingua
ipk: ik: Inupiaq
kal: kl: Kalaallisut, Greenlandic
kom: kv kpv: Komi
kua: kj: Kuanyama
lat: la: Latin
lub: lu: Luba-Katanga
mah: mh: Marshallese
nau: na: Nauru, Nauruan
nav: nv: Navajo
nbl: nr: South Ndebele
nde: nd: North Ndebele
ndo: ng: Ndonga
oji: oj: Ojibwa, Ojibwe
oss: os: Ossetic, Ossetian
pli: pi: Pali
roh: rm: Romansh
sme: se: Northern Sami
tah: ty: Tahitian
ton: to: Tongan
ven: ve: Venda
vol: vo: Volapük
wln: wa: Walloon
zha: za zyb: Zhuang
"""

MEANINGS, NAMES, SHOWN = read_table(_TABLE)


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


MACROLANGUAGES: Final[Mapping[str, tuple[str, ...]]] = {
    code: tuple(members.split())
    for code, members in {
        "aka": "aka twi",
        "arb": "arb arz ary apc ajp acm ars aeb acq",
        "azj": "azj azb",
        "kmr": "kmr ckb",
        "lvs": "lvs ltg",
        "nob": "nob nno",
        "pes": "pes prs",
        "zho": "zho yue",
        "zsm": "zsm ind min bjn",
    }.items()
}
"""The languages that a macrolanguage may mean, by the one that its code stands for."""

LIKELY_SCRIPTS: Final[Mapping[str, str]] = _pairs(
    "ace:Latn azj:Latn bjn:Latn bos:Latn hau:Latn kas:Arab kaz:Cyrl khk:Cyrl kir:Cyrl knc:Latn "
    "min:Latn mni:Beng pan:Guru pnb:Arab sat:Olck snd:Arab srp:Cyrl taq:Latn tat:Cyrl tgk:Cyrl "
    "tuk:Latn tyv:Cyrl uig:Arab urd:Arab uzn:Latn yue:Hant zho:Hans zsm:Latn"
)
"""The script that a language is written in where a tag names none, as CLDR's likely subtags say."""

SCRIPTS_OF_REGIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "azj": {"IQ": "Arab", "IR": "Arab", "RU": "Cyrl"},
    "hau": {"CM": "Arab", "SD": "Arab"},
    "kaz": {"AF": "Arab", "CN": "Arab", "IR": "Arab", "MN": "Arab"},
    "khk": {"CN": "Mong"},
    "kir": {"CN": "Arab", "TR": "Latn"},
    "kmr": {"LB": "Arab"},
    "pan": {"PK": "Arab"},
    "srp": {"ME": "Latn", "RO": "Latn", "RU": "Latn", "TR": "Latn"},
    "tgk": {"PK": "Arab"},
    "uig": {"KZ": "Cyrl", "MN": "Cyrl"},
    "uzn": {"AF": "Arab", "CN": "Cyrl"},
    "yue": {"CN": "Hans"},
    "zho": _pairs(
        "AU:Hant BN:Hant GB:Hant GF:Hant HK:Hant ID:Hant MO:Hant PA:Hant PF:Hant PH:Hant SR:Hant "
        "TH:Hant TW:Hant US:Hant VN:Hant"
    ),
    "zsm": {"CC": "Arab"},
}
"""The regions that write a language in another script, as CLDR's likely subtags say."""

ARABIC_REGIONS: Final[Mapping[str, str]] = _pairs(
    "EG:arz IQ:acm JO:ajp LB:apc MA:ary PS:ajp SA:ars SY:apc TN:aeb YE:acq"
)
"""The regions with an Arabic of their own: `ar-EG` means that, or the standard language there."""

SCRIPTS: Final[Mapping[str, str]] = {
    name: code
    for code, names in {
        "Arab": "arabic perso-arabic",
        "Armn": "armenian",
        "Beng": "bengali bangla",
        "Cyrl": "cyrillic",
        "Deva": "devanagari",
        "Ethi": "ethiopic geez",
        "Geor": "georgian",
        "Grek": "greek",
        "Gujr": "gujarati",
        "Guru": "gurmukhi",
        "Hang": "hangul korean",
        "Hans": "simplified",
        "Hant": "traditional",
        "Hebr": "hebrew",
        "Jpan": "japanese",
        "Khmr": "khmer",
        "Knda": "kannada",
        "Laoo": "lao",
        "Latn": "latin",
        "Mlym": "malayalam",
        "Mymr": "myanmar burmese",
        "Olck": "ol-chiki",
        "Orya": "odia oriya",
        "Sinh": "sinhala",
        "Taml": "tamil",
        "Telu": "telugu",
        "Tfng": "tifinagh",
        "Thai": "thai",
        "Tibt": "tibetan",
    }.items()
    for name in names.split()
}
"""The script of each name. The first name of a script is shown."""
