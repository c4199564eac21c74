//! Extracts captions from the answers of a vision model.
//!
//! The caption is the text of the first choice on one line, without reasoning, tokens of chat templates,
//! labels and quotation marks. Of a truncated answer, it is the whole sentences, marked as cut. Filtered
//! answers, refusals, and answers with only reasoning or without words are errors.
//!
//! | module | contents |
//! |---|---|
//! | `plain` | removes everything that models write around a caption |
//! | `limit` | cuts captions at limits |

mod limit;
mod plain;

pub use limit::MAX_CHARACTERS;
pub(crate) use limit::{Caption, Limit};

use crate::text::{has_words, single_spaced};
use opensora_manifest::value;
use serde_json::Value;

/// Maximum length of a quotation of a server's message, in characters.
const MAX_QUOTED: usize = 200;
/// Beginnings of refusals. Captions do not use the first person.
const REFUSALS: [&str; 22] = [
    "i'm sorry",
    "i am sorry",
    "sorry, ",
    "i apologize",
    "i can't",
    "i cannot",
    "i can not",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "i am not able",
    "i'm an ai",
    "i am an ai",
    "i don't see any",
    "i do not see any",
    // Not "As an aircraft lands".
    "as an ai ",
    "as an ai,",
    "as an ai-",
    "as a language model",
    "as a text-based",
    "unfortunately, i ",
    "unfortunately, no ",
];

/// Returns the caption in an answer.
///
/// # Errors
/// Returns why the answer has no caption, in one line.
pub fn caption(body: &[u8]) -> Result<String, String> {
    judge(body, usize::MAX).map(|caption| caption.text)
}

/// Returns the caption in an answer of at most `max_tokens` tokens, or why it has none, in one line.
pub(crate) fn judge(body: &[u8], max_tokens: usize) -> Result<Caption, String> {
    let answer = parse(body)?;
    let choice = &answer["choices"][0];
    let reason = choice["finish_reason"].as_str();
    if reason == Some("content_filter") {
        return Err("the answer was filtered by the server".into());
    }
    let message = &choice["message"];
    let said = |field: &str| message[field].as_str().filter(|text| !text.trim().is_empty());
    if let Some(refusal) = said("refusal") {
        return Err(format!("the model refused: {}", quoted(refusal)));
    }
    let reasoning_alone = || {
        let is_cut = matches!(reason, Some("length" | "max_tokens"));
        let hint = if is_cut { ", cut off at max_tokens" } else { "" };
        Err(format!("the answer holds reasoning alone, no caption{hint}"))
    };
    let Some(text) = plain::caption(&content(&message["content"])) else {
        return reasoning_alone();
    };
    // "None" and the like would be read as a missing value.
    if !has_words(&text) || value::is_missing(&text) {
        return match said("reasoning_content").or(said("reasoning")) {
            Some(_) => reasoning_alone(),
            None => Err("the answer is empty".into()),
        };
    }
    let lower = text.to_lowercase().replace('\u{2019}', "'");
    if REFUSALS.iter().any(|refusal| lower.starts_with(refusal)) {
        return Err(format!("the model refused: {}", quoted(&text)));
    }
    Ok(Caption::within(text, max_tokens, matches!(reason, Some("length" | "max_tokens"))))
}

/// Checks that an answer is one of a chat API; else returns why not, in one line.
pub(crate) fn is_chat(body: &[u8]) -> Result<(), String> {
    parse(body).map(drop)
}

/// Parses a JSON object with at least one choice.
fn parse(body: &[u8]) -> Result<Value, String> {
    let answer: Value = serde_json::from_slice(body)
        .map_err(|_| format!("the answer is not JSON: {}", explain(body)))?;
    if !answer["error"].is_null() {
        return Err(format!("the server reports an error: {}", explain(body)));
    }
    if answer["choices"].get(0).is_none() {
        return Err(format!("the answer has no choices: {}", quoted(&answer.to_string())));
    }
    Ok(answer)
}

/// Returns the text of a message: a string, or the text parts of a list.
fn content(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            // Other parts are reasoning.
            let is_said = |part: &&Value| {
                part["type"].as_str().is_none_or(|kind| ["text", "output_text"].contains(&kind))
            };
            let said = parts.iter().filter(is_said);
            let texts: Vec<&str> = said.filter_map(|part| part["text"].as_str()).collect();
            texts.join(" ")
        }
        _ => String::new(),
    }
}

/// Returns a server's error message, in one line of bounded length.
pub(crate) fn explain(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let places = [&json["error"]["message"], &json["error"], &json["message"], &json["detail"]];
    let said = places.into_iter().find_map(Value::as_str);
    match said.unwrap_or(&text).trim() {
        "" => "no explanation".into(),
        page if page.starts_with('<') => "an HTML page".into(),
        said => quoted(said),
    }
}

/// Returns a text in one line of bounded length.
fn quoted(text: &str) -> String {
    let line = single_spaced(text);
    match line.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(choice: Value) -> Result<String, String> {
        let caption = judge(json!({ "choices": [choice] }).to_string().as_bytes(), 300)?;
        assert_eq!(caption.cut, None);
        Ok(caption.text)
    }

    #[test]
    fn captions_are_one_line_of_clean_text() {
        for (content, text) in [
            (json!(" A fox\r\n\r\n runs.\u{200b} "), "A fox runs."),
            (json!("\"A fox runs.\""), "A fox runs."),
            (json!("\u{201c}A fox runs.\u{201d}"), "A fox runs."),
            (json!("\"Stop\" says a sign beside \"Go\""), "\"Stop\" says a sign beside \"Go\""),
            (json!("<think>hm\nhm</think>\n\nA fox runs."), "A fox runs."),
            (json!("hm</think>A fox\u{0}runs."), "A fox runs."),
            (
                json!([{"type": "text", "text": "A fox"}, {"type": "text", "text": "runs."}]),
                "A fox runs.",
            ),
            (
                json!([{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": "A fox"}]),
                "A fox",
            ),
            (json!("{\"caption\": \"A \\\"red\\\" fox.\"}"), "A \"red\" fox."),
            (json!("雾"), "雾"),
        ] {
            let choice = json!({"message": {"content": content}, "finish_reason": "stop"});
            assert_eq!(of(choice), Ok(text.into()));
        }
    }

    #[test]
    fn answers_without_caption_give_the_reason() {
        let message = json!({"content": "A fox"});
        for (choice, words) in [
            (json!({"message": message, "finish_reason": "content_filter"}), "filtered"),
            (json!({"message": {"content": null, "refusal": "No.\nNo."}}), "refused: No. No."),
            (json!({"message": {"content": "I\u{2019}m sorry, but I can't."}}), "refused: I"),
            (json!({"message": {"content": " \n"}}), "empty"),
            (json!({"message": {"content": "..."}}), "empty"),
            (json!({"message": {"content": "Caption: None"}}), "empty"),
            (json!({"message": {"content": "N/A"}}), "empty"),
            (json!({"message": {"content": "Sorry, no video was provided."}}), "refused: Sorry"),
            (json!({"message": {"content": "As a language model, I see none."}}), "refused: As a"),
            (json!({"message": {"content": null}}), "empty"),
            (json!({"message": {"content": "<think>hm"}}), "reasoning alone, no caption"),
            (json!({"message": {"content": "", "reasoning_content": "hm"}}), "reasoning alone"),
            (
                json!({"message": {"content": "<think>hm"}, "finish_reason": "length"}),
                "reasoning alone, no caption, cut off at max_tokens",
            ),
            (json!({}), "empty"),
            (json!("text"), "empty"),
        ] {
            let reason = of(choice).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        }
        for (body, words) in [
            ("", "not JSON: no explanation"),
            ("<!doctype html><p>Hello", "not JSON: an HTML page"),
            ("{\"choices\": [{\"mess", "not JSON"),
            ("[]", "no choices"),
            ("3", "no choices"),
            ("{\"choices\": []}", "no choices"),
            ("{\"error\": {\"message\": \"no such\\nmodel\"}}", "error: no such model"),
            ("{\"error\": \"busy\"}", "error: busy"),
        ] {
            for reason in
                [caption(body.as_bytes()).unwrap_err(), is_chat(body.as_bytes()).unwrap_err()]
            {
                assert!(reason.contains(words), "{reason}");
            }
        }
    }

    #[test]
    fn captions_may_begin_like_a_refusal() {
        let said = |text: &str| of(json!({"message": {"content": text}}));
        for text in ["As an airplane lands, people wave.", "As an aide speaks, cameras flash."] {
            assert_eq!(said(text), Ok(text.into()));
        }
        for text in ["As an AI language model, I cannot.", "As an AI, I see none.", "As an AI-bot"]
        {
            assert!(said(text).unwrap_err().contains("refused: As an AI"), "{text}");
        }
    }

    #[test]
    fn answers_that_were_cut_off_are_marked() {
        for reason in ["length", "max_tokens"] {
            let message = json!({"content": "<think>hm</think>A fox runs. It ju"});
            let body = json!({"choices": [{"message": message, "finish_reason": reason}]});
            let cut = judge(body.to_string().as_bytes(), 300).unwrap();
            assert_eq!((cut.text.as_str(), cut.cut), ("A fox runs.", Some(Limit::MaxTokens)));
        }
        let long = json!({"choices": [{"message": {"content": "fog ".repeat(400)}}]}).to_string();
        let cut = judge(long.as_bytes(), 300).unwrap();
        assert_eq!((cut.text.split(' ').count(), cut.cut), (299, Some(Limit::MaxTokens)));
    }

    #[test]
    fn quotations_are_bounded() {
        let said = explain("ü".repeat(5000).as_bytes());
        assert_eq!(said.chars().count(), MAX_QUOTED + 3);
        assert_eq!(explain(b"{\"detail\": \"Not Found\"}"), "Not Found");
    }
}
