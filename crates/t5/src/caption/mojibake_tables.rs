//! Tables of the mojibake heuristic: classes of characters for its patterns, and code pages.
//!
//! Source: rspeer/python-ftfy 6.3.1 (Apache-2.0), `ftfy/badness.py` (`MOJIBAKE_CATEGORIES`),
//! `ftfy/chardata.py` (`UTF8_CLUES`) and `ftfy/bad_codecs/sloppy.py`. Classes are bodies of regex
//! classes, without the brackets.

/// Characters that are common in any text.
pub(super) const COMMON: &str = r"\u{a0}\u{ad}\u{b7}\u{b4}\u{2013}\u{2014}\u{2015}\u{2026}\u{2019}";

/// C1 controls.
pub(super) const C1: &str = r"\u{80}-\u{9f}";

/// Characters that are almost never intended.
pub(super) const BAD: &str = concat!(
    r"\u{a6}\u{a4}\u{a8}\u{ac}\u{af}\u{b8}ƒ\u{2c6}\u{2c7}\u{2d8}\u{2db}\u{2dc}\u{2020}",
    r"\u{2021}\u{2030}\u{2310}\u{25ca}\u{fffd}ªº",
);

/// Symbols of legal texts.
pub(super) const LAW: &str = r"\u{b6}\u{a7}";

/// Currency signs.
pub(super) const CURRENCY: &str = r"\u{a2}\u{a3}\u{a5}\u{20a7}\u{20ac}";

/// Punctuation at the start of a phrase.
pub(super) const START_PUNCTUATION: &str = concat!(
    r"\u{a1}\u{ab}\u{bf}\u{a9}\u{384}\u{385}\u{2018}\u{201a}\u{201c}\u{201e}\u{2022}\u{2039}",
    r"\u{f8ff}",
);

/// Punctuation at the end of a phrase.
pub(super) const END_PUNCTUATION: &str = r"\u{ae}\u{bb}\u{2dd}\u{201d}\u{203a}\u{2122}";

/// Symbols next to numbers.
pub(super) const NUMERIC: &str = concat!(
    r"\u{b2}\u{b3}\u{b9}\u{b1}\u{bc}\u{bd}\u{be}\u{d7}µ\u{f7}\u{2044}\u{2202}\u{2206}",
    r"\u{220f}\u{2211}\u{221a}\u{221e}\u{2229}\u{222b}\u{2248}\u{2260}\u{2261}\u{2264}",
    r"\u{2265}\u{2116}",
);

/// Letters of kaomoji faces.
pub(super) const KAOMOJI: &str = r"Ò-ÖÙ-Üò-öø-üŐŌŪŲ\u{b0}";

/// Accented capital letters.
pub(super) const UPPER_ACCENTED: &str = r"À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ";

/// Accented small letters.
pub(super) const LOWER_ACCENTED: &str = r"ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ";

/// Capital letters that are common in text.
pub(super) const UPPER_COMMON: &str = r"ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я";

/// Small letters that are common in text.
pub(super) const LOWER_COMMON: &str = r"α-ωάέήίΰа-џ";

/// Box drawing characters.
pub(super) const BOX: &str = concat!(
    r"\u{2502}\u{250c}\u{2510}\u{2518}\u{251c}\u{2524}\u{252c}\u{253c}\u{2550}-\u{256c}",
    r"\u{2580}\u{2584}\u{2588}\u{258c}\u{2590}\u{2591}\u{2592}\u{2593}",
);

/// Wrongly decoded lead bytes of two-byte sequences.
pub(super) const UTF8_FIRST_OF_2: &str = concat!(
    r"ĂÂÄĀÅÃÆĆČÇĎĐÉĚÊËĖÈĒĘÐĞĢÍÎÏİÌĪĶĹĻŁŃŇŅÑÓÔÖŐÒŌØÕŘŚŠŞŢÞÚÛÜŰÙŪŲŮÝŹŽŻß\u{d7}ΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡ",
    r"ΣΤΥΦΧΨΩΪΫάέήίВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ",
);

/// Wrongly decoded lead bytes of three-byte sequences.
pub(super) const UTF8_FIRST_OF_3: &str =
    r"áăâäàāąåãæćčçďéěêëėèēęęģíîïìīįķĺļŕźΰαβγδεζηθικλμνξοабвгдежзийклмноп";

/// Wrongly decoded lead bytes of four-byte sequences.
pub(super) const UTF8_FIRST_OF_4: &str = r"đðğóšπσру";

/// Wrongly decoded continuation bytes, and a space for a lost no-break space.
pub(super) const UTF8_CONTINUATION: &str = concat!(
    r"\u{80}-\u{bf}\u{20}ĄÆĽŁØŖŚŠŞŤŸŹŽŻŒąæƒľłøŗśšşťźžżœ\u{2c6}\u{2c7}\u{2d8}\u{2db}\u{2dc}",
    r"\u{2dd}\u{384}\u{385}ΆΈΉΊΌΎΏЁЂЃЄЅІЇЈЉЊЋЌЎЏёђѓєѕіїјљњћќўџҐґ\u{2013}\u{2014}\u{2015}",
    r"\u{2018}\u{2019}\u{201a}\u{201c}\u{201d}\u{201e}\u{2020}\u{2021}\u{2022}\u{2026}",
    r"\u{2030}\u{2039}\u{203a}\u{20ac}\u{2116}\u{2122}",
);

/// The continuation bytes whose characters are rarely intended.
pub(super) const UTF8_CONTINUATION_STRICT: &str = concat!(
    r"\u{80}-\u{bf}ĄÆĽŁØŖŚŠŞŤŸŹŽŻŒąæƒľłøŗśšşťźžżœ\u{2c6}\u{2c7}\u{2d8}\u{2db}\u{2dc}\u{2dd}",
    r"\u{384}\u{385}ΆΈΉΊΌΎΏЁЂЃЄЅІЇЈЉЊЋЌЎЏёђѓєѕіїјљњћќўџҐґ\u{2020}\u{2021}\u{2030}\u{2039}",
    r"\u{203a}\u{20ac}\u{2116}\u{2122}",
);

/// A single-byte encoding; bytes below 0x80 are ASCII.
pub(super) struct CodePage {
    /// Name of the encoding.
    pub(super) name: &'static str,
    /// True if byte 0x1A decodes to the replacement character, and unassigned bytes decode to code points of the
    /// same value.
    pub(super) sloppy: bool,
    /// The characters of bytes 0x80 to 0xFF.
    pub(super) upper: &'static str,
}

/// The encodings with which text is wrongly decoded, the most likely first.
pub(super) const CODE_PAGES: [CodePage; 10] = [
    CodePage {
        name: "latin-1",
        sloppy: false,
        upper: concat!(
            "\u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}",
            "\u{8d}\u{8e}\u{8f}\u{90}\u{91}\u{92}\u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}",
            "\u{9a}\u{9b}\u{9c}\u{9d}\u{9e}\u{9f}\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿ÀÁ",
            "ÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ",
        ),
    },
    CodePage {
        name: "windows-1252",
        sloppy: true,
        upper: concat!(
            "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ\u{a0}¡¢£¤¥¦§¨©ª«¬",
            "\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷",
            "øùúûüýþÿ",
        ),
    },
    CodePage {
        name: "windows-1251",
        sloppy: true,
        upper: concat!(
            "ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\u{98}™љ›њќћџ\u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї°±Ііґµ¶·ё№є»јЅѕїА",
            "БВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюя",
        ),
    },
    CodePage {
        name: "windows-1250",
        sloppy: true,
        upper: concat!(
            "€\u{81}‚\u{83}„…†‡\u{88}‰Š‹ŚŤŽŹ\u{90}‘’“”•–—\u{98}™š›śťžź\u{a0}ˇ˘Ł¤Ą¦§¨©Ş«¬",
            "\u{ad}®Ż°±˛ł´µ¶·¸ąş»Ľ˝ľżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷",
            "řůúűüýţ˙",
        ),
    },
    CodePage {
        name: "windows-1253",
        sloppy: true,
        upper: concat!(
            "€\u{81}‚ƒ„…†‡\u{88}‰\u{8a}‹\u{8c}\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—\u{98}™\u{9a}›",
            "\u{9c}\u{9d}\u{9e}\u{9f}\u{a0}΅Ά£¤¥¦§¨©ª«¬\u{ad}®―°±²³΄µ¶·ΈΉΊ»Ό½ΎΏΐΑΒΓΔΕΖΗΘΙΚΛΜΝ",
            "ΞΟΠΡÒΣΤΥΦΧΨΩΪΫάέήίΰαβγδεζηθικλμνξοπρςστυφχψωϊϋόύώÿ",
        ),
    },
    CodePage {
        name: "windows-1254",
        sloppy: true,
        upper: concat!(
            "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}\u{9e}Ÿ\u{a0}¡¢£¤¥¦§",
            "¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏĞÑÒÓÔÕÖ×ØÙÚÛÜİŞßàáâãäåæçèéêëìíîïğñò",
            "óôõö÷øùúûüışÿ",
        ),
    },
    CodePage {
        name: "windows-1257",
        sloppy: true,
        upper: concat!(
            "€\u{81}‚\u{83}„…†‡\u{88}‰\u{8a}‹\u{8c}¨ˇ¸\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}¯˛",
            "\u{9f}\u{a0}¡¢£¤¥¦§Ø©Ŗ«¬\u{ad}®Æ°±²³´µ¶·ø¹ŗ»¼½¾æĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽß",
            "ąįāćäåęēčéźėģķīļšńņóōõö÷ųłśūüżž˙",
        ),
    },
    CodePage {
        name: "iso-8859-2",
        sloppy: false,
        upper: concat!(
            "\u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}",
            "\u{8d}\u{8e}\u{8f}\u{90}\u{91}\u{92}\u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}",
            "\u{9a}\u{9b}\u{9c}\u{9d}\u{9e}\u{9f}\u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ°ą˛ł´ľśˇ¸šşťź˝žżŔÁ",
            "ÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙",
        ),
    },
    CodePage {
        name: "macroman",
        sloppy: false,
        upper: concat!(
            "ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø¿¡¬√ƒ≈∆«»…\u{a0}",
            "ÀÃÕŒœ–—“”‘’÷◊ÿŸ⁄€‹›ﬁﬂ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ",
        ),
    },
    CodePage {
        name: "cp437",
        sloppy: false,
        upper: concat!(
            "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧",
            "╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}",
        ),
    },
];
