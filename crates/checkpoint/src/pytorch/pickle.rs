//! Interprets pickles: builds [`Objects`] and calls no function.
//!
//! Source: CPython, `Lib/pickletools.py`, protocols 0 to 5.

use super::{
    objects::{Id, Objects, Value},
    rebuild,
};
use std::{collections::HashMap, rc::Rc};

/// Maximum size of a pickle in bytes. A T5-XXL with encoder and decoder has 100 KB.
pub(super) const MAX_PICKLE: usize = 8 << 20;

/// Maximum number of instructions in all pickles of a file. A tensor takes about 30.
pub(super) const MAX_INSTRUCTIONS: usize = 500_000;

/// Maximum length of a class name in bytes.
const MAX_NAME: usize = 256;

/// Reads pickles one after the other.
pub(super) struct Unpickler<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Instructions that are left. Copies of lists count like the instructions that made them.
    left: usize,
    pub(super) objects: Objects,
    stack: Vec<Id>,
    /// Heights of the stack at open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Unpickler<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            left: MAX_INSTRUCTIONS,
            objects: Objects::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    /// Returns the number of bytes read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Reads the next pickle and returns its object.
    pub(super) fn load(&mut self) -> Result<Id, String> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        loop {
            self.spend(1)?;
            let at = self.at;
            match self.byte()? {
                b'.' => return self.pop(),
                code => self.execute(code, at)?,
            }
        }
    }

    /// Counts executed instructions; returns an error if the limit of the file is exceeded.
    pub(super) fn spend(&mut self, count: usize) -> Result<(), String> {
        match self.left.checked_sub(count) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(format!("its pickle has more than {MAX_INSTRUCTIONS} instructions")),
        }
    }

    fn execute(&mut self, code: u8, at: usize) -> Result<(), String> {
        let is_known = self.execute_framing(code)?
            || self.execute_stack(code)?
            || self.execute_number(code)?
            || self.execute_text(code)?
            || self.execute_container(code)?
            || self.execute_call(code)?;
        if is_known {
            return Ok(());
        }
        Err(format!("byte {code:#04x} at {at} of its pickle is not understood"))
    }

    /// Skips the protocol and frames, which are hints to readers of streams. Returns false for
    /// other instructions.
    fn execute_framing(&mut self, code: u8) -> Result<bool, String> {
        match code {
            0x80 => {
                let version = self.byte()?;
                if version > 5 {
                    return Err(format!("its pickle has protocol {version}, expected at most 5"));
                }
            }
            0x95 => drop(self.take(8)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Executes an instruction on the stack, its marks or the memo. Returns false for other instructions.
    fn execute_stack(&mut self, code: u8) -> Result<bool, String> {
        match code {
            b'(' => self.marks.push(self.stack.len()),
            b'0' if self.mark_on_top() => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' | b'r' | b'p' | 0x94 => {
                let index = match code {
                    b'q' => self.number(1)?,
                    b'r' => self.number(4)?,
                    b'p' => self.line_number()?,
                    _ => self.memo.len() as u64,
                };
                let top = self.top()?;
                self.memo.insert(index, top);
            }
            b'h' | b'j' | b'g' => {
                let index = match code {
                    b'h' => self.number(1)?,
                    b'j' => self.number(4)?,
                    _ => self.line_number()?,
                };
                let found = self.memo.get(&index).copied();
                self.stack.push(found.ok_or_else(|| format!("memo {index} is not set"))?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Pushes `None`, a boolean or a number. Returns false for other instructions.
    fn execute_number(&mut self, code: u8) -> Result<bool, String> {
        match code {
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool(code == 0x88))?,
            b'K' => self.push_number(1)?,
            b'M' => self.push_number(2)?,
            b'J' => {
                let number = self.number(4)? as u32 as i32;
                self.push(Value::Int(number.into()))?;
            }
            b'I' | b'L' => {
                let value = decimal(self.line()?)?;
                self.push(value)?;
            }
            0x8a | 0x8b => {
                let bytes = self.counted(if code == 0x8a { 1 } else { 4 })?;
                self.push(long(bytes))?;
            }
            b'F' | b'G' => {
                match code {
                    b'F' => self.line()?,
                    _ => self.take(8)?,
                };
                self.push(Value::Object("float".into()))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Pushes text or bytes. Returns false for other instructions.
    fn execute_text(&mut self, code: u8) -> Result<bool, String> {
        match code {
            b'X' | 0x8c | 0x8d => {
                let bytes = self.counted(match code {
                    b'X' => 4,
                    0x8c => 1,
                    _ => 8,
                })?;
                // Python's text may hold surrogates: bytes of file names that are not UTF-8.
                let text = String::from_utf8_lossy(bytes);
                self.push(Value::Text((&*text).into()))?;
            }
            // Text of Python 2.
            b'U' | b'T' => {
                let bytes = self.counted(if code == b'U' { 1 } else { 4 })?;
                self.push(Value::Text(latin(bytes)))?;
            }
            b'S' => {
                let line = self.line()?;
                let quoted = line.len() >= 2 && line[0] == line[line.len() - 1];
                let text = latin(if quoted { &line[1..line.len() - 1] } else { line });
                self.push(Value::Text(text))?;
            }
            b'V' => {
                let text = raw_unicode(self.line()?)?;
                self.push(Value::Text(text))?;
            }
            b'C' | b'B' | 0x8e | 0x96 => {
                let width = match code {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                };
                self.counted(width)?;
                self.push(Value::Object("bytes".into()))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Makes or fills a list, tuple, set or dictionary. Returns false for other instructions.
    fn execute_container(&mut self, code: u8) -> Result<bool, String> {
        match code {
            b']' | b')' | 0x8f => self.push(Value::Sequence(Vec::new()))?,
            b'}' => self.push(Value::Dict(Default::default()))?,
            b'l' | b't' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Value::Sequence(items))?;
            }
            0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0..=code - 0x85 {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Value::Sequence(items))?;
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Dict(Default::default()))?;
                self.objects.set_items(self.top()?, &items)?;
            }
            b'a' | b'e' | 0x90 => {
                let items = if code == b'a' { vec![self.pop()?] } else { self.pop_to_mark()? };
                self.objects.append(self.top()?, items)?;
            }
            b's' | b'u' => {
                let items = if code == b's' {
                    let value = self.pop()?;
                    vec![self.pop()?, value]
                } else {
                    self.pop_to_mark()?
                };
                self.objects.set_items(self.top()?, &items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Pushes a class, or makes or changes an object. Returns false for other instructions.
    fn execute_call(&mut self, code: u8) -> Result<bool, String> {
        match code {
            b'c' => {
                let (module, name) = (latin(self.line()?), latin(self.line()?));
                self.push_class(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let name = self.objects.text(name, "the name of a class")?;
                let module = self.objects.text(module, "the module of a class")?;
                self.push_class(&module, &name)?;
            }
            b'R' | 0x81 | 0x92 => {
                if code == 0x92 {
                    self.pop()?; // Keyword arguments.
                }
                let (arguments, class) = (self.pop()?, self.pop()?);
                self.call(class, arguments)?;
            }
            b'i' => {
                let (module, name) = (latin(self.line()?), latin(self.line()?));
                let items = self.pop_to_mark()?;
                let arguments = self.objects.add(Value::Sequence(items))?;
                self.push_class(&module, &name)?;
                let class = self.pop()?;
                self.call(class, arguments)?;
            }
            b'o' => {
                let mut items = self.pop_to_mark()?;
                if items.is_empty() {
                    return Err("its pickle makes an object without a class".into());
                }
                let class = items.remove(0);
                let arguments = self.objects.add(Value::Sequence(items))?;
                self.call(class, arguments)?;
            }
            b'b' => {
                let state = self.pop()?;
                let object = self.top()?;
                rebuild::set_state(self, object, state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let object = rebuild::persistent(&mut self.objects, id)?;
                self.stack.push(object);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn call(&mut self, class: Id, arguments: Id) -> Result<(), String> {
        let object = rebuild::call(self, class, arguments)?;
        self.stack.push(object);
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        let id = self.objects.add(value)?;
        self.stack.push(id);
        Ok(())
    }

    fn push_number(&mut self, width: usize) -> Result<(), String> {
        let number = self.number(width)?;
        self.push(Value::Int(number.into()))
    }

    fn push_class(&mut self, module: &str, name: &str) -> Result<(), String> {
        if module.len() + name.len() > MAX_NAME {
            return Err("its pickle has a class name that is too long".into());
        }
        self.push(Value::Class(format!("{module}.{name}").into()))
    }

    fn mark_on_top(&self) -> bool {
        self.marks.last() == Some(&self.stack.len())
    }

    fn top(&self) -> Result<Id, String> {
        let top = self.stack.last().filter(|_| !self.mark_on_top());
        top.copied().ok_or_else(|| "its pickle takes a value from an empty stack".into())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("its pickle takes a mark that was not set")?;
        Ok(self.stack.split_off(mark))
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.get(..count));
        let bytes = bytes.ok_or_else(|| match self.bytes.len() {
            MAX_PICKLE.. => format!("its pickles have more than {MAX_PICKLE} bytes"),
            _ => "its pickle ends early".into(),
        })?;
        self.at += count;
        Ok(bytes)
    }

    /// Reads an unsigned number of `width` bytes, little-endian.
    fn number(&mut self, width: usize) -> Result<u64, String> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads bytes after their count, which takes `width` bytes.
    fn counted(&mut self, width: usize) -> Result<&'a [u8], String> {
        let count = self.number(width)?;
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn line(&mut self) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(end.unwrap_or(rest.len()))?;
        self.take(1)?;
        Ok(line)
    }

    fn line_number(&mut self) -> Result<u64, String> {
        let line = self.line()?;
        let number = std::str::from_utf8(line).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| "its pickle has a memo whose name is no number".into())
    }
}

/// Decodes Latin-1.
fn latin(bytes: &[u8]) -> Rc<str> {
    bytes.iter().map(|&byte| char::from(byte)).collect::<String>().into()
}

/// Decodes Latin-1 with other characters escaped as `\u0142` or `\U0001f98a`.
fn raw_unicode(bytes: &[u8]) -> Result<Rc<str>, String> {
    let mut text = String::new();
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = match (byte, after.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => 0,
        };
        if digits == 0 {
            text.push(char::from(byte));
            rest = after;
            continue;
        }
        let number = after.get(1..=digits).and_then(|digits| std::str::from_utf8(digits).ok());
        let number = number.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        text.push(number.and_then(char::from_u32).ok_or("text with a damaged character")?);
        rest = &after[1 + digits..];
    }
    Ok(text.into())
}

/// Parses a number of protocol 0, in which `00` and `01` are booleans.
fn decimal(line: &[u8]) -> Result<Value, String> {
    let line = line.strip_suffix(b"L").unwrap_or(line);
    match line {
        b"00" => return Ok(Value::Bool(false)),
        b"01" => return Ok(Value::Bool(true)),
        _ => {}
    }
    let digits = line.strip_prefix(b"-").unwrap_or(line);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("its pickle has a number without digits".into());
    }
    let number = std::str::from_utf8(line).ok().and_then(|text| text.parse().ok());
    Ok(number.map_or_else(large, Value::Int))
}

/// Parses a little-endian number in two's complement.
fn long(bytes: &[u8]) -> Value {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut number = [if negative { 0xff } else { 0 }; 16];
    let Some(place) = number.get_mut(..bytes.len()) else { return large() };
    place.copy_from_slice(bytes);
    Value::Int(i128::from_le_bytes(number))
}

/// Returns a placeholder for a number of more than 128 bits, such as a hash among settings.
fn large() -> Value {
    Value::Object("int".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(bytes: &[u8]) -> Result<String, String> {
        let mut unpickler = Unpickler::new(bytes);
        let root = unpickler.load()?;
        Ok(show(&unpickler.objects, root))
    }

    fn show(objects: &Objects, id: Id) -> String {
        let list = |items: &[Id]| items.iter().map(|&item| show(objects, item)).collect::<Vec<_>>();
        match objects.get(id) {
            Value::None => "None".into(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Text(text) => format!("{text:?}"),
            Value::Class(name) | Value::Object(name) => format!("<{name}>"),
            Value::Sequence(items) => format!("[{}]", list(items).join(", ")),
            Value::Dict(entries) => {
                let entries =
                    entries.iter().map(|(key, &id)| format!("{key}: {}", show(objects, id)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
            other => format!("{other:?}"),
        }
    }

    /// `{"path": "caf\udce9"}`, a file name that is not UTF-8.
    #[test]
    fn text_may_hold_surrogates() {
        let bytes = b"\x80\x02}X\x04\x00\x00\x00pathX\x06\x00\x00\x00caf\xed\xb3\xa9s.";
        let found = load(bytes).unwrap();
        assert!(found.starts_with("{path: \"caf"), "{found}");
    }

    /// `{"a": 1, "b": [1.5, True, None], "c": b"xy", "d": {"e": "ü"}, "f": (-3, 2**70, {4})}`, as Python
    /// writes it.
    #[test]
    fn every_protocol_gives_the_same_object() {
        let expected = "{a: 1, b: [<float>, true, None], c: <bytes>, d: {e: \"\u{fc}\"}, \
                        f: [-3, 1180591620717411303424, [4]]}";
        let large = b"\x00\x00\x00\x00\x00\x00\x00\x00\x40";
        let four = [
            &b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94K\x01\x8c\x01b\x94]\x94(G"[..],
            b"\x3f\xf8\x00\x00\x00\x00\x00\x00\x88Ne\x8c\x01c\x94C\x02xy\x94\x8c\x01d\x94}\x94\x8c\x01e\x94",
            b"\x8c\x02\xc3\xbc\x94s\x8c\x01f\x94J\xfd\xff\xff\xff\x8a\x09",
            large,
            b"\x8f\x94(K\x04\x90\x87\x94u.",
        ]
        .concat();
        assert_eq!(load(&four).unwrap(), expected);
        let two = [
            &b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01X\x01\x00\x00\x00bq\x02]q\x03(G"[..],
            b"\x3f\xf8\x00\x00\x00\x00\x00\x00\x88NeX\x01\x00\x00\x00cq\x04c_codecs\nencode\nq\x05X\x02",
            b"\x00\x00\x00xyq\x06X\x06\x00\x00\x00latin1q\x07\x86q\x08Rq\x09X\x01\x00\x00\x00d}q\x0aX\x01",
            b"\x00\x00\x00eX\x02\x00\x00\x00\xc3\xbcsX\x01\x00\x00\x00fJ\xfd\xff\xff\xff\x8a\x09",
            large,
            b"c__builtin__\nset\n]K\x04a\x85R\x87u.",
        ]
        .concat();
        // Protocol 2 has no bytes: they are a call of `_codecs.encode`.
        assert_eq!(load(&two).unwrap(), expected.replace("<bytes>", "<_codecs.encode>"));
        let zero = b"(dp0\nVa\np1\nI1\nsVb\np2\n(lp3\nF1.5\naI01\naNasS'c'\np4\nS'xy'\nsVd\n(dVe\nV\xfc\nss\
                     Vf\n(I-3\nL1180591620717411303424L\n(lI4\natsg0\n0.";
        assert_eq!(load(zero).unwrap(), expected.replace("<bytes>", "\"xy\""));
    }

    #[test]
    fn dictionaries_are_shared_as_in_python() {
        // One dictionary under two keys, filled after it was stored under the first.
        let pickle = b"\x80\x02}(X\x01\x00\x00\x00a}q\x00X\x01\x00\x00\x00bh\x00u0h\x00K\x01K\x02s0}K\x05h\x00s.";
        assert_eq!(load(pickle).unwrap(), "{5: {1: 2}}");
        // Classes that are derived from dictionaries and lists.
        let pickle = b"\x80\x02ca\nDict\n)\x81K\x01ca\nList\n)\x81K\x02as.";
        assert_eq!(load(pickle).unwrap(), "{1: [2]}");
    }

    #[test]
    fn objects_are_made_by_each_instruction() {
        for pickle in [
            &b"ca\nB\nK\x01\x85R."[..],
            b"ca\nB\nK\x01\x85\x81.",
            b"ca\nB\nK\x01\x85}\x92.",
            b"(K\x01ia\nB\n.",
            b"(ca\nB\nK\x01o.",
        ] {
            assert_eq!(load(pickle).unwrap(), "<a.B>", "{pickle:?}");
        }
        assert!(load(b"(o.").unwrap_err().contains("an object without a class"));
        let class = |bytes: usize| load(format!("cm\n{}\n.", "x".repeat(bytes - 1)).as_bytes());
        assert!(class(MAX_NAME).is_ok());
        assert!(class(MAX_NAME + 1).unwrap_err().contains("a class name that is too long"));
    }

    #[test]
    fn instructions_of_the_stack_and_of_old_protocols() {
        for (pickle, expected) in [
            (&b"K\x07(K\x01K\x021."[..], "7"),
            (b"K\x012\x86.", "[1, 1]"),
            (b"K\x01K\x020.", "1"),
            (b"K\x01(0.", "1"),
            (b"I00\n.", "false"),
            (b"I01\n.", "true"),
            (b"Sabc\n.", "\"abc\""),
            (b"S'abc'\n.", "\"abc\""),
            (b"S'\n.", "\"'\""),
            (b"B\x02\x00\x00\x00xy.", "<bytes>"),
            (b"C\x02xy.", "<bytes>"),
            (b"(U\x06moduleca\nB\nU\x01fU\x01stQ.", "<a.B>"),
        ] {
            assert_eq!(load(pickle).unwrap(), expected, "{pickle:?}");
        }
    }

    #[test]
    fn dictionaries_are_made_of_pairs() {
        let dict = |pairs: &[u8]| load(&[b"ccollections\nOrderedDict\n", pairs, b"R."].concat());
        assert_eq!(dict(b")").unwrap(), "{}");
        assert_eq!(dict(b"((U\x01aK\x01t(U\x01bK\x02ll\x85").unwrap(), "{a: 1, b: 2}");
        for pairs in [&b"((U\x01atl\x85"[..], b"((U\x01aK\x01K\x02tl\x85", b"(K\x01l\x85"] {
            let error = dict(pairs).unwrap_err();
            assert!(error.contains("expected a key with its value"), "{error}");
        }
    }

    #[test]
    fn text_of_other_characters_is_decoded() {
        assert_eq!(
            load(b"V\\u0142\\U0001f98a\xfc\\\n.").unwrap(),
            "\"\u{142}\u{1f98a}\u{fc}\\\\\""
        );
        assert!(load(b"V\\u01\n.").is_err());
        assert_eq!(load(b"X\x01\x00\x00\x00\xff.").unwrap(), "\"\u{fffd}\"");
    }

    #[test]
    fn pickles_cut_at_any_length_are_rejected() {
        let pickle = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01U\x01bM\x01\x02ctorch\nSize\n\
                       G\x00\x00\x00\x00\x00\x00\x00\x00u.";
        assert!(load(pickle).is_ok());
        for length in 0..pickle.len() {
            assert_eq!(load(&pickle[..length]).unwrap_err(), "its pickle ends early", "{length}");
        }
        assert!(load(b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff..").is_err());
        for (pickle, says) in [
            (&b"N\xff."[..], "0xff at 1"),
            (b"h\x07.", "memo 7"),
            (b"(0t.", "mark"),
            (b".", "empty stack"),
            (b"]K\x01K\x02s.", "no dictionary"),
            (b"}K\x01a.", "no list"),
            (b"Lnope\n.", "digits"),
            (b"\x80\x06N.", "protocol 6"),
        ] {
            let error = load(pickle).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn pickles_of_the_largest_size_may_have_been_cut() {
        // A text of 4 GB.
        let error = |bytes: usize| {
            let mut pickle = b"X\xff\xff\xff\xff".to_vec();
            pickle.resize(bytes, b'x');
            load(&pickle).unwrap_err()
        };
        assert_eq!(error(MAX_PICKLE - 1), "its pickle ends early");
        assert_eq!(error(MAX_PICKLE), "its pickles have more than 8388608 bytes");
    }

    #[test]
    fn instructions_are_counted_over_all_pickles() {
        let mut bytes = vec![b'N'; MAX_INSTRUCTIONS + 1];
        bytes[3] = b'.';
        let mut unpickler = Unpickler::new(&bytes);
        unpickler.load().unwrap();
        assert_eq!(unpickler.position(), 4);
        assert!(unpickler.load().unwrap_err().contains("instructions"));
    }
}
