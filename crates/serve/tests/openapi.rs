//! Compares the OpenAPI description with the server: routes, and the fields of responses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod fake;

use client::{Running, wait};
use opensora_serve::OPENAPI;
use serde_json::{Value, json};
use std::time::Duration;

fn description() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

/// Checks a value against a schema, with the subset of JSON Schema that the description uses.
fn check(value: &Value, schema: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.strip_prefix('#').unwrap();
        return check(value, description().pointer(pointer).unwrap(), at);
    }
    if let Some(options) = schema["oneOf"].as_array() {
        let fits = |option: &&Value| is_type(value, option["type"].as_str().unwrap());
        let option = options.iter().find(fits).unwrap_or_else(|| panic!("{at}: {value}"));
        return check(value, option, at);
    }
    if let Some(expected) = schema.get("const") {
        assert_eq!(value, expected, "{at}");
    }
    if let Some(values) = schema["enum"].as_array() {
        assert!(values.contains(value), "{at}: {value}");
    }
    match &schema["type"] {
        Value::String(kind) => assert!(is_type(value, kind), "{at}: {value}, expected {kind}"),
        Value::Array(kinds) => {
            assert!(
                kinds.iter().any(|kind| is_type(value, kind.as_str().unwrap())),
                "{at}: {value}"
            );
        }
        _ => {}
    }
    if let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object())
    {
        for (name, value) in fields {
            let schema =
                properties.get(name).unwrap_or_else(|| panic!("{at}.{name} is not described"));
            check(value, schema, &format!("{at}.{name}"));
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            assert!(fields.contains_key(name.as_str().unwrap()), "{at}.{name} is missing");
        }
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        items.iter().for_each(|item| check(item, schema, at));
    }
}

fn is_type(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other}"),
    }
}

#[test]
fn every_described_route_exists_with_its_methods_only() {
    let server = Running::start(Duration::from_millis(1));
    let client = server.client();
    let description = description();
    let paths = description["paths"].as_object().unwrap();
    assert!(paths.len() >= 11, "{}", paths.len());
    for (path, methods) in paths {
        let path = path.replace("{video_id}", "none").replace("{model}", "none");
        for method in ["get", "post", "put", "delete", "patch"] {
            let response = client.request(&method.to_uppercase(), &path, &[], b"");
            let known = methods.get(method).is_some();
            assert_eq!(response.status != 405, known, "{method} {path}: {response:?}");
            if known && response.status == 404 {
                let code = response.json()["error"]["code"].clone();
                let message = response.json()["error"]["message"].clone();
                assert_ne!(message, "no such route", "{method} {path} {code}");
            }
            // Statuses are described as well.
            if known {
                let responses = methods[method]["responses"].as_object().unwrap();
                let status = response.status.to_string();
                assert!(responses.contains_key(&status), "{method} {path}: {status}");
            }
        }
    }
    assert_eq!(client.get("/v1/other").json()["error"]["message"], "no such route");
}

#[test]
fn responses_have_the_described_fields() {
    let server = Running::start(Duration::from_millis(5));
    let client = server.client();
    let described = |value: &Value, name: &str| {
        check(value, &json!({"$ref": format!("#/components/schemas/{name}")}), name);
    };
    let create = |body: Value| {
        described(&body, "VideoRequest");
        client.post("/v1/videos", &body).json()
    };
    let queued =
        create(json!({"prompt": "fog", "steps": 60, "negative_prompt": "rain", "seed": 3}));
    described(&queued, "Video");
    let id = queued["id"].as_str().unwrap();
    described(&wait(&client, id, "in_progress"), "Video");
    let events = client.get(&format!("/v1/videos/{id}/events")).events();
    for (name, data) in &events {
        let schema = match name.as_str() {
            "status" => "Video",
            "progress" => "Progress",
            "preview" => "Preview",
            other => panic!("{other}"),
        };
        described(data, schema);
    }
    assert!(events.iter().any(|(name, _)| name == "preview"));
    described(&wait(&client, id, "completed"), "Video");
    for prompt in ["fail", "overflow"] {
        let failed = create(json!({"prompt": prompt, "num_inference_steps": 1}));
        described(&wait(&client, failed["id"].as_str().unwrap(), "failed"), "Video");
    }
    let cancelled =
        create(json!({"prompt": "fog", "steps": 200, "sampler": "iddpm", "seconds": "2"}));
    let path = format!("/v1/videos/{}", cancelled["id"].as_str().unwrap());
    described(&client.request("DELETE", &path, &[], b"").json(), "Deleted");
    described(&client.get(&path).json(), "Video");
    described(&client.request("DELETE", &path, &[], b"").json(), "Deleted");
    described(&client.get("/v1/videos").json(), "VideoList");
    described(&client.get("/v1/models").json(), "ModelList");
    described(&client.get("/health").json(), "Health");
    for response in [
        client.get("/v1/videos/none"),
        client.get("/v1/videos?limit=0"),
        client.post("/v1/videos", &json!({"prompt": "fog", "size": "x"})),
        client.get("/v1/models/none"),
        client.post("/health", &json!({})),
    ] {
        described(&response.json(), "Error");
    }
    let description = client.get("/openapi.json");
    assert_eq!(description.body, OPENAPI.as_bytes());
}

/// The description has exactly the parameters that the server accepts.
#[test]
fn parameters_are_the_described_ones() {
    use opensora_serve::VideoRequest;
    let description = description();
    let schema = &description["components"]["schemas"]["VideoRequest"]["properties"];
    for name in schema.as_object().unwrap().keys() {
        let fields = [(name.clone(), Value::Null), ("prompt".into(), "fog".into())];
        assert!(VideoRequest::from_fields(fields.into_iter().collect()).is_ok(), "{name}");
        let fields = [(name.clone(), json!({})), ("model".into(), "m".into())];
        let error = VideoRequest::from_fields(fields.into_iter().collect()).unwrap_err();
        assert_ne!(error.code, "unknown_parameter", "{name}");
    }
    for name in ["prompts", "width", "n", "input_reference", "duration"] {
        assert!(schema.get(name).is_none(), "{name}");
        let fields = [(name.to_string(), json!(1)), ("prompt".into(), "fog".into())];
        let error = VideoRequest::from_fields(fields.into_iter().collect()).unwrap_err();
        assert_eq!(error.code, "unknown_parameter", "{name}");
    }
}
