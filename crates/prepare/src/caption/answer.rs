//! What a model answered, judged.
//!
//! A caption is the text of the first choice, on one line, without what is not part of it (thoughts
//! before it, quotation marks around it). An answer that was cut off, filtered, refused or has no
//! words is none.

use serde_json::Value;

/// Characters of a server's own words that are passed on.
const MAX_QUOTED: usize = 200;
/// What a model writes instead of a caption. A caption has no first person.
const REFUSALS: [&str; 8] = [
    "i'm sorry",
    "i am sorry",
    "i can't",
    "i cannot",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "as an ai",
];

/// Returns the caption in an answer.
///
/// # Errors
/// Returns one line that says why there is no caption.
pub fn caption(body: &[u8]) -> Result<String, String> {
    let answer = parse(body)?;
    let choice = &answer["choices"][0];
    match choice["finish_reason"].as_str() {
        Some(reason @ ("length" | "max_tokens")) => {
            return Err(format!("the answer was cut off (finish_reason {reason})"));
        }
        Some("content_filter") => return Err("the answer was filtered by the server".into()),
        _ => {}
    }
    let message = &choice["message"];
    if let Some(refusal) = message["refusal"].as_str().filter(|text| !text.trim().is_empty()) {
        return Err(format!("the model refused: {}", quoted(refusal)));
    }
    let text = clean(&content(&message["content"]));
    if !text.chars().any(char::is_alphanumeric) {
        return Err("the answer is empty".into());
    }
    let plain = text.to_lowercase().replace('\u{2019}', "'");
    if REFUSALS.iter().any(|refusal| plain.starts_with(refusal)) {
        return Err(format!("the model refused: {}", quoted(&text)));
    }
    Ok(text)
}

/// Whether an answer is one of a chat at all; else, on one line, why not.
pub(crate) fn is_chat(body: &[u8]) -> Result<(), String> {
    parse(body).map(drop)
}

/// A JSON object with at least one choice.
fn parse(body: &[u8]) -> Result<Value, String> {
    let answer: Value = serde_json::from_slice(body)
        .map_err(|_| format!("the answer is no JSON: {}", explain(body)))?;
    if !answer["error"].is_null() {
        return Err(format!("the server reports an error: {}", explain(body)));
    }
    if answer["choices"].get(0).is_none() {
        return Err(format!("the answer has no choices: {}", quoted(&answer.to_string())));
    }
    Ok(answer)
}

/// A message's text: a string, or parts of which some are text.
fn content(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            texts.join(" ")
        }
        _ => String::new(),
    }
}

/// One line of clean text.
fn clean(text: &str) -> String {
    // Models that think aloud end it with this mark, and some templates leave out the one that
    // begins it.
    let text = text.rsplit_once("</think>").map_or(text, |(_, said)| said);
    let mut text = one_line(text);
    for (open, close) in [('"', '"'), ('\u{201c}', '\u{201d}')] {
        let inner = text.strip_prefix(open).and_then(|text| text.strip_suffix(close));
        // Marks inside belong to a quotation of its own.
        if let Some(inner) = inner.filter(|inner| !inner.contains([open, close])) {
            text = inner.trim().to_string();
        }
    }
    text
}

/// The words of a text, one space between two; characters that cannot be seen are left out.
fn one_line(text: &str) -> String {
    let hidden = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}');
    let is_gap = |c: char| c.is_whitespace() || c.is_control();
    let visible: String = text.chars().filter(|&c| !hidden(c)).collect();
    let words: Vec<&str> = visible.split(is_gap).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// A server's own words about an error, on one line and of bounded length.
pub(crate) fn explain(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let places = [&json["error"]["message"], &json["error"], &json["message"], &json["detail"]];
    let said = places.into_iter().find_map(Value::as_str);
    match said.unwrap_or(&text).trim() {
        "" => "nothing else was said".into(),
        page if page.starts_with('<') => "it is a page of HTML".into(),
        said => quoted(said),
    }
}

/// A text on one line and of bounded length.
fn quoted(text: &str) -> String {
    let line = one_line(text);
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
        caption(json!({ "choices": [choice] }).to_string().as_bytes())
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
            (json!("雾"), "雾"),
        ] {
            let choice = json!({"message": {"content": content}, "finish_reason": "stop"});
            assert_eq!(of(choice), Ok(text.into()));
        }
    }

    #[test]
    fn what_is_no_caption_is_told() {
        let message = json!({"content": "A fox"});
        for (choice, words) in [
            (json!({"message": message, "finish_reason": "length"}), "cut off"),
            (json!({"message": message, "finish_reason": "content_filter"}), "filtered"),
            (json!({"message": {"content": null, "refusal": "No.\nNo."}}), "refused: No. No."),
            (json!({"message": {"content": "I\u{2019}m sorry, but I can't."}}), "refused: I"),
            (json!({"message": {"content": " \n"}}), "empty"),
            (json!({"message": {"content": "..."}}), "empty"),
            (json!({"message": {"content": null}}), "empty"),
            (json!({}), "empty"),
            (json!("text"), "empty"),
        ] {
            let reason = of(choice).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        }
        for (body, words) in [
            ("", "no JSON: nothing"),
            ("<!doctype html><p>Hello", "no JSON: it is a page of HTML"),
            ("{\"choices\": [{\"mess", "no JSON"),
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
    fn quotations_are_bounded() {
        let said = explain("ü".repeat(5000).as_bytes());
        assert_eq!(said.chars().count(), MAX_QUOTED + 3);
        assert_eq!(explain(b"{\"detail\": \"Not Found\"}"), "Not Found");
    }
}
