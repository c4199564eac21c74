//! Tables, prompt files, lists of downloads, and texts that steps of a preparation read.

use super::{Reader, Scratch, fixtures, text, utf8};
use opensora_manifest::{Manifest, Table, read_prompts};
use opensora_prepare::{
    caption::{Prompt, answer},
    clean::caption::{Openings, clean},
    download::{List, ListFormat, Part},
    pipeline::config::Config,
};
use std::path::Path;

pub(super) const READERS: &[Reader] = &[
    Reader {
        name: "table",
        inputs: 20_000,
        seeds: tables,
        read: |scratch, bytes| {
            let path = scratch.write("damaged.csv", bytes);
            let table = Table::read_with_root(&path, Path::new(""));
            let manifest = Manifest::read(&path);
            table.map(drop).and(manifest.map(drop)).map_err(text)
        },
    },
    Reader {
        name: "prompts",
        inputs: 20_000,
        seeds: || {
            let mut seeds = tables();
            seeds.push("\u{feff}a red fox\r\n\r\nein h\u{fc}bscher \u{1f98a}\rthe sea\n".into());
            seeds
        },
        read: |scratch, bytes| {
            let lines = read_prompts(&scratch.write("damaged.txt", bytes));
            let rows = read_prompts(&scratch.write("damaged.csv", bytes));
            lines.map(drop).and(rows.map(drop)).map_err(text)
        },
    },
    Reader {
        name: "list",
        inputs: 10_000,
        seeds: || {
            let texts = [
                "url,text,start,end,licence\nhttps://a.example/1.mp4,\"a fox, red\",1.5,0:02,CC0\n",
                "videoID,url,timestamp,caption,matching_score\nab,https://youtu.be/-2yHu5qgTzM,\"[['0:00:01.5', '0:00:02']]\",\"['a \\u00e9', \"\"b\"\"]\",\"[0.5]\"\n",
            ];
            texts.iter().map(|text| text.as_bytes().to_vec()).collect()
        },
        read: |scratch, bytes| list(scratch, "list.csv", bytes),
    },
    Reader {
        name: "list_json",
        inputs: 10_000,
        seeds: || {
            let text = r#"{"-2yHu5qgTzM": {"url": "https://www.youtube.com/watch?v=-2yHu5qgTzM", "clip": {"a.mp4": {"span": ["00:00:17.7", "00:00:42.0"], "fps": 30.0, "scene_split": [{"clip_id": "a_0", "caption": "a fox", "scene_cut": [0, 120]}, {"clip_id": "a_1", "caption": "b", "scene_cut": [120, -1]}]}}}, "b": {}}"#;
            vec![text.as_bytes().to_vec()]
        },
        read: |scratch, bytes| list(scratch, "list.json", bytes),
    },
    Reader {
        name: "pipeline_config",
        inputs: 10_000,
        seeds: || {
            let text = "input = \"videos\"\nout = \"all.csv\"\nwork = \"work\"\nworkers = 2\n\n[split]\nshorter_side = 64\nfps = \"source\"\n\n[filter]\nduplicates = true\nmin = { num_frames = 16, motion = 0.002 }\n\n[clean]\n";
            vec![text.as_bytes().to_vec()]
        },
        read: |scratch, bytes| {
            let config = Config::read(&scratch.write("prepare.toml", bytes)).map_err(text)?;
            config.stages(opensora_prepare::RunOptions::default()).map(drop).map_err(text)
        },
    },
    Reader {
        name: "caption_answer",
        inputs: 10_000,
        seeds: || {
            let texts = [
                r#"{"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "<think>a fox?</think>\n\"A \u00e9 fox runs.\""}}]}"#,
                r#"{"choices": [{"message": {"content": [{"type": "text", "text": "Caption: a fox<|im_end|>"}]}}]}"#,
                r#"{"error": {"message": "no\nroom"}}"#,
            ];
            texts.iter().map(|text| text.as_bytes().to_vec()).collect()
        },
        read: |_, bytes| answer::caption(bytes).map(drop),
    },
    Reader {
        name: "caption_texts",
        inputs: 10_000,
        seeds: || {
            let texts = [
                "Describe {frames} ({num_frames}). {\"as\": 1}",
                "the video|clip shows|depicts,\nin this video,\n",
                "<b>A Fox</b> in http://a.example, 24\u{b0}C &amp; IMG_0001.jpg #fox @user",
            ];
            texts.iter().map(|text| text.as_bytes().to_vec()).collect()
        },
        read: |_, bytes| {
            let found = utf8(bytes)?;
            clean(found, &Openings::parse(found));
            let _ = opensora_t5::caption::text_preprocessing(found);
            Prompt::new(found).map(drop).map_err(text)
        },
    },
];

fn tables() -> Vec<Vec<u8>> {
    let texts = [
        "path,text,num_frames,aes\na.mp4,\"A fox, \"\"red\"\"\nruns\",51,5.5\n/b/c.png,,,\n",
        "\u{feff}video_path;caption;frames\r\na.mp4;\"h\u{fc}bsch; \u{1f98a}\";16.0\r\nb;NaN;nan\r\n",
        "sep=\t\nfile_name\tprompt\nx.mp4\tfog\n\n\"y.mp4\"\t\"sea\"\n",
    ];
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    seeds.extend(fixtures(&["written-by-0.1.0/data/clips.csv", "written-by-0.1.0/split.csv"]));
    seeds.extend(fixtures(&[
        "../../crates/manifest/tests/fixtures/field/bomblank.txt",
        "../../crates/manifest/tests/fixtures/field/nan.csv",
        "../../crates/manifest/tests/fixtures/field/nfnan.csv",
        "../../crates/manifest/tests/fixtures/field/semi.csv",
    ]));
    seeds
}

fn list(scratch: &Scratch, name: &str, bytes: &[u8]) -> Result<(), String> {
    let path = scratch.write(name, bytes);
    let format = ListFormat::of(&path).map_err(text)?;
    List::read(&path, format, Part::WHOLE).map(drop).map_err(text)
}
