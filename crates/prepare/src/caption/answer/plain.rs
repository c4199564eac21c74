//! Removes reasoning, tokens of chat templates, labels and quotation marks around a caption.

use crate::text::{has_words, single_spaced};
use serde_json::Value;

/// Marks around reasoning; case is ignored.
const REASONING: [(&str, &str); 16] = [
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<unused94>", "<unused95>"),
    ("<thoughts>", "</thoughts>"),
    ("<analysis>", "</analysis>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<reason>", "</reason>"),
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u{25c1}think\u{25b7}", "\u{25c1}/think\u{25b7}"),
];
/// Marks around the final answer; case is ignored.
const ANSWER: [(&str, &str); 13] = [
    ("<|begin_of_box|>", "<|end_of_box|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("\\boxed{", "}"),
    ("<final_answer>", "</final_answer>"),
    ("<final>", "</final>"),
    ("<conclusion>", "</conclusion>"),
    ("<response>", "</response>"),
    ("<output>", "</output>"),
    ("<result>", "</result>"),
    ("<answer>", "</answer>"),
    ("<caption>", "</caption>"),
    ("<description>", "</description>"),
];
/// Tokens of chat templates that are not of the kind `<|...|>`.
const TOKENS: [&str; 15] = [
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<image>",
    "<video>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
];
/// Maximum length of a token of the kind `<|...|>`, in bytes.
const LONGEST_TOKEN: usize = 64;
/// Maximum length of a label, in bytes.
const LONGEST_LABEL: usize = 120;

/// Returns the caption in an answer, on one line; `None` if the answer holds reasoning alone.
pub(super) fn caption(answer: &str) -> Option<String> {
    let text = final_channel(answer)?;
    let text = without_reasoning(text)?;
    let text = inside_marks(text);
    let text = bare(turn(reply(text)));
    // Some models answer with a JSON object although the prompt does not ask for one.
    let said = field(text);
    let line = single_spaced(said.as_deref().map_or(text, bare));
    Some(unquoted(&line).into())
}

/// Returns the text without labels and quotation marks, also nested ones.
fn bare(mut text: &str) -> &str {
    loop {
        let before = text.len();
        text = text.trim();
        text = unquoted(text);
        text = unlabelled(text);
        if text.len() == before {
            return text;
        }
    }
}

/// Returns the caption in a JSON object or a list of one; `None` for other text.
fn field(text: &str) -> Option<String> {
    const FIELDS: [&str; 8] = [
        "caption",
        "description",
        "answer",
        "response",
        "output",
        "text",
        "summary",
        "final_answer",
    ];
    if !text.starts_with(['{', '[']) {
        return None;
    }
    let mut value: Value = serde_json::from_str(text).ok()?;
    if let Some([only]) = value.as_array_mut().map(Vec::as_mut_slice) {
        value = only.take();
    }
    if let Some(text) = value.as_str() {
        return Some(text.into());
    }
    let find = |name: &str| {
        let mut fields = value.as_object()?.iter();
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name))?.1.as_str().map(String::from)
    };
    FIELDS.into_iter().find_map(find)
}

/// Returns the reply in a conversation that a model writes out: the text after the repeated request, and
/// before a further one.
fn reply(text: &str) -> &str {
    const REQUESTS: [&str; 8] = [
        "USER:",
        "User:",
        "HUMAN:",
        "Human:",
        "### Human:",
        "### User:",
        "### Instruction:",
        "Question:",
    ];
    const REPLIES: [&str; 6] =
        ["ASSISTANT:", "Assistant:", "### Assistant:", "### Response:", "Answer:", "ANSWER:"];
    let mut text = text.trim_start();
    if REQUESTS.iter().any(|request| text.starts_with(request)) {
        let ends = REPLIES.iter().filter_map(|reply| Some(text.find(reply)? + reply.len()));
        let Some(end) = ends.min() else { return text };
        text = &text[end..];
    }
    let further = REQUESTS.iter().filter_map(|request| {
        text.match_indices(request).find(|(at, _)| text[..*at].ends_with('\n')).map(|(at, _)| at)
    });
    match further.min().map(|at| &text[..at]) {
        Some(said) if has_words(said) => said,
        _ => text,
    }
}

/// Returns the position of the first `pattern` in `text`; ASCII case is ignored.
fn find(text: &str, pattern: &str) -> Option<usize> {
    let mut windows = text.as_bytes().windows(pattern.len());
    windows.position(|window| window.eq_ignore_ascii_case(pattern.as_bytes()))
}

fn rfind(text: &str, pattern: &str) -> Option<usize> {
    let mut windows = text.as_bytes().windows(pattern.len());
    windows.rposition(|window| window.eq_ignore_ascii_case(pattern.as_bytes()))
}

/// Returns the text of the last final channel (`<|channel|>final<|message|>`), or the whole text if it
/// has no channels; `None` if it has only other channels.
fn final_channel(text: &str) -> Option<&str> {
    const CHANNEL: &str = "<|channel|>";
    const MESSAGE: &str = "<|message|>";
    // The remains of channels if the server drops special tokens.
    const BARE: &str = "assistantfinal";
    if find(text, CHANNEL).is_none() {
        let is_bare =
            ["analysis", "commentary"].iter().any(|name| text.trim_start().starts_with(name));
        return match text.rfind(BARE).filter(|_| is_bare) {
            Some(at) => Some(&text[at + BARE.len()..]),
            None => Some(text),
        };
    }
    let mut rest = text;
    while let Some(at) = rfind(rest, CHANNEL) {
        let channel = &text[at + CHANNEL.len()..];
        let is_final = channel.get(..5).is_some_and(|name| name.eq_ignore_ascii_case("final"));
        if let (true, Some(begin)) = (is_final, find(channel, MESSAGE)) {
            return Some(&channel[begin + MESSAGE.len()..]);
        }
        rest = &rest[..at];
    }
    None
}

/// Returns the text without reasoning, closed or not; `None` if nothing else remains.
fn without_reasoning(text: &str) -> Option<&str> {
    let mut text = text;
    for (open, close) in REASONING {
        let begin = find(text, open);
        // Some templates omit the opening mark of the reasoning.
        let Some(end) = rfind(text, close) else {
            text = match begin {
                Some(begin) => Some(&text[..begin]).filter(|said| has_words(said))?,
                None => text,
            };
            continue;
        };
        let said = &text[end + close.len()..];
        // Further reasoning that is not closed.
        let said = find(said, open).map_or(said, |begin| &said[..begin]);
        text = match begin {
            _ if has_words(said) => said,
            Some(begin) => Some(&text[..begin]).filter(|said| has_words(said))?,
            None => return None,
        };
    }
    Some(text)
}

/// Returns the text between the last marks around an answer ([`ANSWER`]), or the whole text if there are
/// none or no words between them.
fn inside_marks(text: &str) -> &str {
    for (open, close) in ANSWER {
        if let Some(begin) = rfind(text, open) {
            let inside = &text[begin + open.len()..];
            let inside = find(inside, close).map_or(inside, |end| &inside[..end]);
            if has_words(inside) {
                return inside;
            }
        }
    }
    text
}

/// Returns the token of a chat template at the beginning of `text`.
fn token(text: &str) -> Option<&str> {
    for (open, close) in [("<|", "|>"), ("<\u{ff5c}", "\u{ff5c}>")] {
        if let Some(rest) = text.strip_prefix(open)
            && let Some(end) = rest.find(close).filter(|end| *end <= LONGEST_TOKEN)
            && !rest[..end].contains(char::is_whitespace)
        {
            return Some(&text[..open.len() + end + close.len()]);
        }
    }
    let is_there = |token: &&&str| {
        text.get(..token.len()).is_some_and(|start| start.eq_ignore_ascii_case(token))
    };
    TOKENS.iter().find(is_there).map(|token| &text[..token.len()])
}

/// Returns the assistant's first text between the tokens of a chat template.
fn turn(text: &str) -> &str {
    // The parts between tokens, each with the token before it.
    let mut parts = vec![("", text)];
    let (mut begin, mut before) = (0, "");
    for (at, _) in text.match_indices(['<', '[']) {
        // Inside the previous token.
        if at < begin {
            continue;
        }
        if let Some(token) = token(&text[at..]) {
            parts.pop();
            parts.push((before, &text[begin..at]));
            (begin, before) = (at + token.len(), token);
            parts.push((before, &text[begin..]));
        }
    }
    let is_request = |token: &str| {
        let name = token.trim_matches(['<', '>', '|', '[', ']']).to_ascii_lowercase();
        ["inst", "sys", "user", "system", "human"].contains(&name.as_str())
    };
    // A request that is repeated without its opening token ends with this one.
    let is_answered =
        |part: &(&str, &str)| part.0.eq_ignore_ascii_case("[/INST]") && has_words(part.1);
    let first = parts.iter().rposition(is_answered).unwrap_or(0);
    let mut is_others = false;
    for (token, part) in parts.into_iter().skip(first) {
        let (role, said) = role(token, part);
        match role {
            Some(is_assistant) => is_others = !is_assistant,
            None if is_request(token) => continue,
            None => {}
        }
        if has_words(said) && !is_others {
            return said;
        }
        // The role in a header is a separate part; its text is the next part.
        if has_words(said) {
            is_others = false;
        }
    }
    ""
}

/// Splits a part into its role (true for the assistant), if the token before it announces one, and its
/// text.
fn role<'a>(token: &str, part: &'a str) -> (Option<bool>, &'a str) {
    let announces = ["<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|start|>"];
    if !announces.iter().any(|announcing| announcing.eq_ignore_ascii_case(token)) {
        return (None, part);
    }
    let part = part.trim_start();
    let end = part.find(|c: char| !c.is_alphanumeric()).unwrap_or(part.len());
    let (name, said) = part.split_at(end);
    match name.to_ascii_lowercase().as_str() {
        "assistant" | "model" => (Some(true), said),
        "user" | "system" | "tool" | "developer" | "human" => (Some(false), said),
        _ => (None, part),
    }
}

/// Returns the text without quotation marks, emphasis or a code fence around the whole text, or a single
/// unpaired quotation mark.
fn unquoted(text: &str) -> &str {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix("```") {
        let rest = rest.strip_suffix("```").unwrap_or(rest);
        // The first line names a language.
        let is_name = |line: &str| line.chars().all(|c| c.is_ascii_alphanumeric());
        let body = rest.split_once('\n').filter(|(name, _)| is_name(name.trim()));
        return body.map_or(rest, |(_, body)| body).trim();
    }
    for mark in ["**", "__", "*", "_", "`"] {
        let inner = text.strip_prefix(mark).and_then(|text| text.strip_suffix(mark));
        if let Some(inner) = inner.filter(|inner| !inner.contains(mark)) {
            return inner.trim();
        }
    }
    let pairs = [
        ('"', '"'),
        ('\'', '\''),
        ('\u{201c}', '\u{201d}'),
        ('\u{2018}', '\u{2019}'),
        ('\u{ab}', '\u{bb}'),
        ('\u{300c}', '\u{300d}'),
        ('\u{300e}', '\u{300f}'),
        ('\u{201e}', '\u{201c}'),
        ('\u{bb}', '\u{ab}'),
    ];
    for (open, close) in pairs {
        let inner = text.strip_prefix(open).and_then(|text| text.strip_suffix(close));
        // Inner marks belong to another quotation.
        if let Some(inner) = inner.filter(|inner| !inner.contains([open, close])) {
            return inner.trim();
        }
        // A full stop after the closing mark is removed with it.
        let stopped = text.strip_suffix('.').and_then(|text| text.strip_suffix(close));
        let inner = stopped.and_then(|text| text.strip_prefix(open));
        if let Some(inner) = inner.filter(|inner| !inner.contains([open, close])) {
            return inner.trim();
        }
        // Apostrophes end words as well.
        if open == '\'' || close == '\u{2019}' {
            continue;
        }
        for alone in [text.strip_prefix(open), text.strip_suffix(close)].into_iter().flatten() {
            if !alone.contains([open, close]) {
                return alone.trim();
            }
        }
    }
    text
}

/// Returns the text after a label such as `Caption:`, `**Final answer:**` or `Here is a caption of the
/// video:`.
fn unlabelled(text: &str) -> &str {
    // The name of a JSON field is not a label.
    if text.starts_with(['{', '[']) {
        return text;
    }
    let text = without_interjection(text);
    let start = text.trim_start_matches(['#', '>', ' ']);
    let bare = start.trim_start_matches(['*', '_']);
    let marks = &start[..start.len() - bare.len()];
    let dash =
        [" - ", " \u{2013} ", " \u{2014} "].into_iter().filter_map(|dash| bare.find(dash)).min();
    let ends = [bare.find([':', '\u{ff1a}', '\n']), dash];
    let label = |end: &usize| *end <= LONGEST_LABEL && is_label(&bare[..*end]);
    let Some(end) = ends.into_iter().flatten().find(label) else { return text };
    let gap = [':', '\u{ff1a}', '\n', ' ', '-', '\u{2013}', '\u{2014}'];
    let rest = bare[end..].trim_start_matches(gap);
    rest.strip_prefix(marks).unwrap_or(rest)
}

/// Returns the text without an agreement such as `Sure!`, and without the mark of a list's only item.
fn without_interjection(text: &str) -> &str {
    const AGREEMENTS: [&str; 8] = [
        "sure!",
        "certainly!",
        "of course!",
        "absolutely!",
        "okay!",
        "sure thing!",
        "got it!",
        "great!",
    ];
    for agreement in AGREEMENTS {
        let start =
            text.get(..agreement.len()).is_some_and(|it| it.eq_ignore_ascii_case(agreement));
        let rest = text.get(agreement.len()..).filter(|rest| start && has_words(rest));
        if let Some(rest) = rest.filter(|rest| rest.starts_with(char::is_whitespace)) {
            return rest.trim_start();
        }
    }
    for mark in ["- ", "* ", "> ", "\u{2022} "] {
        if let Some(rest) =
            text.strip_prefix(mark).filter(|rest| !rest.contains(&format!("\n{mark}")))
        {
            return rest.trim_start();
        }
    }
    text
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '\'')).filter(|word| !word.is_empty())
}

/// Returns true for words that announce a caption without describing the video.
fn is_label(head: &str) -> bool {
    const NOUNS: [&str; 15] = [
        "caption",
        "captions",
        "description",
        "descriptions",
        "answer",
        "response",
        "output",
        "assistant",
        "summary",
        "prompt",
        "描述",
        "视频描述",
        "字幕",
        "标题",
        "答案",
    ];
    const BESIDE: [&str; 34] = [
        "final",
        "video",
        "image",
        "clip",
        "scene",
        "frame",
        "frames",
        "short",
        "detailed",
        "brief",
        "concise",
        "english",
        "the",
        "of",
        "for",
        "a",
        "an",
        "this",
        "your",
        "my",
        "in",
        "is",
        "as",
        "follows",
        "would",
        "be",
        "one",
        "single",
        "sentence",
        "possible",
        "suggested",
        "generated",
        "alt",
        "text",
    ];
    const OPENINGS: [&str; 12] = [
        "ok,",
        "okay",
        "absolutely",
        "based on",
        "here is",
        "here's",
        "here are",
        "here\u{2019}s",
        "below is",
        "sure",
        "certainly",
        "of course",
    ];
    let head = head.to_lowercase();
    // Every sentence announces: "Sure. Here is a caption", but not "Based on these, it rains. The caption reads".
    let announces = |sentence: &str| {
        let opens = OPENINGS.iter().any(|opening| sentence.trim_start().starts_with(opening));
        opens || words(sentence).all(|word| NOUNS.contains(&word) || BESIDE.contains(&word))
    };
    // Not at the dot of a number or a file name.
    let mut sentences = head.split(". ").flat_map(|part| part.split(['!', '?']));
    words(&head).any(|word| NOUNS.contains(&word)) && sentences.all(announces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_is_left_out_closed_or_not() {
        for (answer, said) in [
            ("<think>hm\nhm</think>\n\nA fox runs.", Some("A fox runs.")),
            ("hm</think>A fox runs.", Some("A fox runs.")),
            ("<think>a</think>b<think>c</think> A fox runs.", Some("A fox runs.")),
            ("<THINK>hm</Think>A fox runs.", Some("A fox runs.")),
            ("A fox runs.<think>Is that right?</think>", Some("A fox runs.")),
            ("A fox runs. <think>Is that", Some("A fox runs.")),
            ("<think>x</think>A fox runs.<think>Is that", Some("A fox runs.")),
            ("\u{25c1}think\u{25b7}hm\u{25c1}/think\u{25b7}A fox runs.", Some("A fox runs.")),
            ("[THINK]hm[/THINK]A fox runs.", Some("A fox runs.")),
            ("<think>The user wants a caption of", None),
            ("<think>hm</think>", None),
            ("hm</think>\n", None),
            ("<reasoning>hm", None),
            (
                "<|channel|>analysis<|message|>We see a fox.<|end|><|start|>assistant<|channel|>final\
                 <|message|>A fox runs.<|return|>",
                Some("A fox runs."),
            ),
            ("<|channel|>final <|constrain|>text<|message|>A fox runs.", Some("A fox runs.")),
            ("<|channel|>analysis<|message|>We see a fox.", None),
            ("<|channel|>final", None),
            ("analysisWe see a fox.assistantfinalA fox runs.", Some("A fox runs.")),
            (
                "<|begin_of_thought|>hm<|end_of_thought|>\n<|begin_of_solution|>A fox runs.\
                 <|end_of_solution|>",
                Some("A fox runs."),
            ),
            (
                "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>A fox runs.<|END_RESPONSE|>",
                Some("A fox runs."),
            ),
            ("<unused94>thought\nhm<unused95>A fox runs.", Some("A fox runs.")),
            ("<|begin_of_thought|>hm", None),
            ("<analysis>hm", None),
            (
                "<SUMMARY>s</SUMMARY><CAPTION>c</CAPTION><REASONING>r</REASONING><CONCLUSION>A fox \
                 runs.</CONCLUSION>",
                Some("A fox runs."),
            ),
        ] {
            assert_eq!(caption(answer).as_deref(), said, "{answer}");
        }
    }

    #[test]
    fn tokens_of_chat_templates_are_left_out() {
        for answer in [
            "A fox runs.<|im_end|>",
            "<|im_start|>assistant\nA fox runs.<|im_end|>\n<|im_start|>user\nThanks",
            "<|im_start|>user\nDescribe.<|im_end|>\n<|im_start|>assistant\nA fox runs.",
            "<|start_header_id|>user<|end_header_id|>Describe.<|eot_id|><|start_header_id|>assistant\
             <|end_header_id|>\n\nA fox runs.<|eot_id|>",
            "<s> A fox runs. </s>",
            "A fox runs.</s><s>[INST] And now?",
            "[INST] Describe the video. [/INST] A fox runs.</s>",
            "Describe the video. [/INST] A fox runs.",
            "A fox runs. [/INST]",
            "<start_of_turn>model\nA fox runs.<end_of_turn>",
            "<|assistant|>A fox runs.<|endoftext|>",
            "<\u{ff5c}Assistant\u{ff5c}>A fox runs.<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
            "<|vision_start|><|image_pad|><|vision_end|>A fox runs.",
            "The caption is <|begin_of_box|>A fox runs.<|end_of_box|>",
            "So: <answer>A fox runs.</answer>",
            "The final caption is \\boxed{A fox runs.}",
            "USER: <image>\nDescribe. ASSISTANT: A fox runs.</s>",
            "### Instruction:\nDescribe.\n\n### Response:\nA fox runs.",
            "A fox runs.\n### Human: And now?\n### Assistant: A hen.",
            "A fox runs.\nUSER: Thanks",
            "Question: What is shown?\nAnswer: A fox runs.",
        ] {
            assert_eq!(caption(answer).as_deref(), Some("A fox runs."), "{answer}");
        }
        for kept in ["A sign says <EXIT>.", "2 < 3 and [x] | <|", "A <| b |> c", "a [b] <c"] {
            assert_eq!(caption(kept).as_deref(), Some(kept));
        }
        assert_eq!(caption("</s><s>").as_deref(), Some(""));
    }

    #[test]
    fn labels_and_quotation_marks_are_left_out() {
        for answer in [
            "Caption: A fox runs.",
            "**Caption:** A fox runs.",
            "## Caption\nA fox runs.",
            "**Final Answer**: \"A fox runs.\"",
            "Sure! Here is a caption for the video:\n\n\"A fox runs.\"",
            "Here's a detailed description of what the clip shows:\nA fox runs.",
            "Assistant: Caption: 'A fox runs.'",
            "Video description\u{ff1a}A fox runs.",
            "\u{201c}A fox runs.\u{201d}",
            "\"A fox runs.",
            "A fox runs.\"",
            "```text\nA fox runs.\n```",
            "*A fox runs.*",
            "\u{ab}A fox runs.\u{bb}",
            "Caption - A fox runs.",
            "Video description \u{2014} \"A fox runs.\"",
            "Caption (one sentence): A fox runs.",
            "The caption is: A fox runs.",
            "A possible caption would be:\n\n> A fox runs.",
            "Sure! A fox runs.",
            "Okay, here's a caption:\n- A fox runs.",
            "Based on the frames, here is a description: A fox runs.",
            "\u{201e}A fox runs.\u{201c}",
            "{\"caption\": \"A fox runs.\", \"confidence\": 0.9}",
            "```json\n{\n  \"Description\": \"Caption: A fox runs.\"\n}\n```",
            "[\"A fox runs.\"]",
            "视频描述：A fox runs.",
            "Prompt: A fox runs.",
            "This is the caption: A fox runs.",
            "Sure. Here is a caption: A fox runs.",
            "Here is a caption for clip_0.mp4: A fox runs.",
        ] {
            assert_eq!(caption(answer).as_deref(), Some("A fox runs."), "{answer}");
        }
        for kept in [
            "\"Stop\" says a sign beside \"Go\"",
            "A video: a fox runs.",
            "Two signs: one says stop.",
            "Here is a fox: it runs.",
            "The dogs' bowls",
            "A man's answer: he laughs.",
            "Sure-footed goats climb.",
            "A sign: \"No caption\" - it says.",
            "{a brace} and [a bracket]",
            "Text on a wall - a caption - is shown.",
            "The user: a man at a desk.",
            "- A fox.\n- A hen.",
            "This is a news report. The caption reads: storm.",
            "This is a street with a caption that reads: closed.",
        ] {
            assert_eq!(caption(kept).unwrap(), single_spaced(kept));
        }
        assert_eq!(caption("\"A fox runs\".").as_deref(), Some("A fox runs"));
        assert_eq!(caption("Caption:").as_deref(), Some(""));
    }

    /// Pieces of what models write, joined in every order: no panic, one line, nothing grows.
    #[test]
    fn whatever_a_model_writes_becomes_one_line() {
        let pieces = [
            "<think>",
            "</think>",
            "<|",
            "|>",
            "<|channel|>",
            "final",
            "<|message|>",
            "[INST]",
            "[/INST]",
            "<\u{ff5c}",
            "\u{25c1}think",
            "```",
            "**",
            "\"",
            "\u{201c}",
            "Caption:",
            "\n",
            "ü雾",
            "<|im_start|>",
            "user",
            "<answer>",
            "\u{1f98a}\u{301}",
            "'",
            "</",
        ];
        let mut state = 1u32;
        for _ in 0..20_000 {
            let mut answer = String::new();
            for _ in 0..state % 12 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                answer.push_str(pieces[(state >> 16) as usize % pieces.len()]);
            }
            state = state.wrapping_add(1_013_904_223);
            if let Some(text) = caption(&answer) {
                assert!(!text.contains('\n') && text.len() <= answer.len(), "{answer:?}");
            }
        }
    }
}
