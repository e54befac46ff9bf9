"""The families of M2M100 checkpoints: one row a family.

Knows each family's language codes, the spelling of its language tokens and the places of control
tokens in a sequence. Refuses to know ids, files and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["FAMILIES", "Family", "first_position"]


_Part = Literal["source_lang", "target_lang", "text", "eos"]


@dataclass(frozen=True)
class Family:
    """The facts in which families differ.

    Attributes:
        languages: the language codes that have a token where a checkpoint's files name none, in the
            order of their ids.
        language_codes: transformers' name of that list; None where tokenizer_config.json names no
            list.
        tokenizer_classes: the classes of transformers' tokenizers that read this family.
        has_vocab_file: whether ids stand in `vocab.json`; else they are SentencePiece's + 1 or
            stand in `tokenizer.json`, and the languages are those that the files name.
        language_token: the spelling of a language's token, with `{}` for its code.
        code: the pattern of a code, with one group, for languages that fine-tuning added.
        after_languages: tokens whose ids follow those of the languages.
        legacy: the value of `legacy_behaviour` that tells this family from its twin, None where
            there is none.
        madeup_words: embedding rows after the language tokens that no token uses, where
            tokenizer_config.json does not give their number.
        source_frame: what the encoder reads, in order. `text` stands for the pieces of the text,
            the other names for one token each.
        prompt: the decoder's first tokens, in order; the search continues after them.
    """

    languages: tuple[str, ...]
    language_codes: str | None = "m2m100"
    tokenizer_classes: tuple[str, ...] = ("M2M100Tokenizer",)
    has_vocab_file: bool = True
    language_token: str = "__{}__"
    code: str = "([a-z]{2,3}(?:[_-][A-Za-z0-9]{2,8})*)"
    after_languages: tuple[str, ...] = ()
    legacy: bool | None = None
    madeup_words: int = 8
    source_frame: tuple[_Part, ...] = ("source_lang", "text", "eos")
    prompt: tuple[Literal["decoder_start", "target_lang"], ...] = ("decoder_start", "target_lang")


_M2M100: Final = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu "
    "ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr "
    "ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk "
    "ur uz vi wo xh yi yo zh zu"
)

# The codes of FLORES-200, in the order of NLLB-200's embedding rows.
_NLLB: Final = (
    "ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab "
    "arb_Arab ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn "
    "bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt "
    "bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn "
    "dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn "
    "ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn "
    "gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn "
    "hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn "
    "kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn "
    "kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kon_Latn kor_Hang kmr_Latn lao_Laoo "
    "lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn "
    "luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn "
    "mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva "
    "nso_Latn nus_Latn nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn "
    "por_Latn prs_Arab pbt_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng "
    "scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn "
    "spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn szl_Latn tam_Taml "
    "tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn "
    "tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab "
    "uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans "
    "zho_Hant zul_Latn"
)


def _nllb(frame: tuple[_Part, ...], *, legacy: bool) -> Family:
    return Family(
        tuple(_NLLB.split()),
        language_codes=None,
        tokenizer_classes=("NllbTokenizer", "NllbTokenizerFast"),
        has_vocab_file=False,
        language_token="{}",
        code="([a-z]{2,3}_[A-Z][a-z]{3})",
        after_languages=("<mask>",),
        madeup_words=0,
        source_frame=frame,
        legacy=legacy,
    )


FAMILIES: Final[Mapping[str, Family]] = {
    "m2m100": Family(tuple(_M2M100.split())),
    "wmt21": Family(("en", "ha", "is", "ja", "cs", "ru", "zh", "de"), language_codes="wmt21"),
    # Its encoder reads the target language, and its decoder starts with no language at all. Its own
    # tokenizer is code beside the checkpoint, which may also come with M2M100's.
    "small100": Family(
        tuple(_M2M100.split()),
        tokenizer_classes=("SMALL100Tokenizer", "Small100Tokenizer", "M2M100Tokenizer"),
        source_frame=("target_lang", "text", "eos"),
        prompt=("decoder_start",),
    ),
    "nllb": _nllb(("source_lang", "text", "eos"), legacy=False),
    "nllb-legacy": _nllb(("text", "eos", "source_lang"), legacy=True),
}
"""Each family by name. Of families that share their files, the first is the one they stand for."""


def first_position(pad_token_id: int) -> int:
    """Returns the row of the position table that a sequence's first token reads.

    All families have the same sinusoidal table, and the rows before this one belong to no token.
    Source: `create_position_ids_from_input_ids` in transformers' `modeling_m2m_100.py`.
    """
    return pad_token_id + 1
