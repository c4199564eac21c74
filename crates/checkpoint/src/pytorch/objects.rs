//! The objects of a pickle that weights depend on.
//!
//! All objects are elements of one list and refer to each other by index. As in Python, two dictionaries
//! may hold the same object, and an object may contain itself.

use crate::source::{MAX_TENSORS, check_count};
use burn::tensor::DType;
use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

/// Maximum nesting depth of dictionaries and lists. State dicts of training programs have up to five levels.
const MAX_DEPTH: usize = 100;

/// Maximum number of items visited while dictionaries and lists are walked, including those without tensors. An object
/// that is reached by several paths counts once for each.
const MAX_VISITS: usize = 1 << 20;

/// Maximum length of a dictionary's key, in bytes. Keys of a T5-XXL have up to 60; paths of files have up to 4096.
pub(super) const MAX_KEY: usize = 4096;

/// Maximum length of a storage's key, in bytes. PyTorch writes numbers of up to 20 digits.
const MAX_STORAGE_KEY: usize = 256;

/// Maximum total size of all keys in bytes. Those of a T5-XXL take 40 KB.
const MAX_KEY_BYTES: usize = 16 << 20;

/// Index of an object.
pub(super) type Id = usize;

/// Value of an unpickled object: a Python value, storage or tensor.
#[derive(Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i128),
    Text(Rc<str>),
    /// A class or function by its full name, such as `collections.OrderedDict`.
    Class(Rc<str>),
    /// A list, tuple or set.
    Sequence(Vec<Id>),
    Dict(BTreeMap<Rc<str>, Id>),
    /// An object of the named class that weights do not depend on.
    Object(Rc<str>),
    Storage(StorageView),
    Tensor(Box<View>),
    Unreadable(Box<Unreadable>),
}

/// Element type of a storage: PyTorch's name, dtype and size.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Element {
    /// PyTorch's name of the type.
    pub(super) name: Rc<str>,
    /// The type, if it is supported.
    pub(super) dtype: Option<DType>,
    /// Size of an element in bytes, if known.
    pub(super) size: Option<usize>,
}

/// A storage: numbers in the file that tensors are views of.
#[derive(Debug)]
pub(super) struct Storage {
    /// Name of the storage in the file.
    pub(super) key: Rc<str>,
    pub(super) element: Element,
    /// Number of elements.
    pub(super) elements: usize,
}

/// The range of a storage that a tensor may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct StorageView {
    /// Index in [`Objects::storages`].
    pub(super) storage: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// A tensor: a strided view that lies within its storage.
#[derive(Debug)]
pub(super) struct View {
    /// Index in [`Objects::storages`].
    pub(super) storage: usize,
    pub(super) dtype: DType,
    /// The first element.
    pub(super) offset: usize,
    /// One past the last element that is used.
    pub(super) end: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// A tensor of an unsupported kind, or another object that holds tensors.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// Shape of the tensor; empty if unknown.
    pub(super) shape: Vec<usize>,
    pub(super) reason: String,
}

#[derive(Debug)]
struct Node {
    value: Value,
    /// True if the object is or contains a tensor or storage.
    has_tensors: bool,
}

/// All objects of a file's pickles, with their storages.
#[derive(Debug, Default)]
pub(super) struct Objects {
    nodes: Vec<Node>,
    storages: Vec<Storage>,
    storages_by_key: HashMap<Rc<str>, usize>,
    tensors: usize,
}

/// A readable or unreadable tensor, as found under a key of a dictionary.
pub(super) enum Leaf<'a> {
    Tensor(&'a View),
    Unreadable(&'a Unreadable),
}

impl Objects {
    /// Adds an object.
    pub(super) fn add(&mut self, value: Value) -> Result<Id, String> {
        if matches!(value, Value::Tensor(_) | Value::Unreadable(_)) {
            self.tensors += 1;
            check_count(self.tensors, "tensors")?;
        }
        let has_tensors = self.tensors_in(&value);
        self.nodes.push(Node { value, has_tensors });
        Ok(self.nodes.len() - 1)
    }

    /// Replaces the value of an object, for all objects that refer to it.
    pub(super) fn replace(&mut self, id: Id, value: Value) {
        let has_tensors = self.tensors_in(&value);
        self.nodes[id] = Node { value, has_tensors };
    }

    pub(super) fn get(&self, id: Id) -> &Value {
        &self.nodes[id].value
    }

    /// Returns true if an object is or contains a tensor or storage.
    pub(super) fn has_tensors(&self, id: Id) -> bool {
        self.nodes[id].has_tensors
    }

    fn tensors_in(&self, value: &Value) -> bool {
        match value {
            Value::Storage(_) | Value::Tensor(_) | Value::Unreadable(_) => true,
            Value::Sequence(items) => items.iter().any(|&item| self.has_tensors(item)),
            Value::Dict(entries) => entries.values().any(|&entry| self.has_tensors(entry)),
            _ => false,
        }
    }

    /// Adds items to a list, or to an object whose class is derived from one.
    pub(super) fn append(&mut self, list: Id, items: Vec<Id>) -> Result<(), String> {
        let has_tensors = items.iter().any(|&item| self.has_tensors(item));
        let node = &mut self.nodes[list];
        if matches!(node.value, Value::Object(_)) {
            node.value = Value::Sequence(Vec::new());
        }
        let Value::Sequence(list) = &mut node.value else {
            return Err("its pickle appends to an object that is no list".into());
        };
        list.extend(items);
        node.has_tensors |= has_tensors;
        Ok(())
    }

    /// Sets entries of a dictionary, or of an object whose class is derived from one. `items` alternates
    /// keys and values.
    pub(super) fn set_items(&mut self, dict: Id, items: &[Id]) -> Result<(), String> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("its pickle sets a key without a value".into());
        }
        let mut has_tensors = false;
        let mut entries = Vec::with_capacity(pairs.len());
        for &[key, value] in pairs {
            has_tensors |= self.has_tensors(value);
            entries.push((self.key(key)?, value));
        }
        let node = &mut self.nodes[dict];
        if matches!(node.value, Value::Object(_)) {
            node.value = Value::Dict(BTreeMap::new());
        }
        let Value::Dict(dict) = &mut node.value else {
            return Err("its pickle sets items of an object that is no dictionary".into());
        };
        dict.extend(entries);
        node.has_tensors |= has_tensors;
        Ok(())
    }

    /// Returns the text of a dictionary's key, which may be any object in Python.
    fn key(&self, id: Id) -> Result<Rc<str>, String> {
        match self.get(id) {
            Value::Text(text) if text.len() > MAX_KEY => Err(too_long("key", text, MAX_KEY)),
            Value::Text(text) => Ok(text.clone()),
            Value::Int(number) => Ok(number.to_string().into()),
            _ => Ok(format!("<key {id}>").into()),
        }
    }

    /// Returns the key of a storage, which is text or a number.
    pub(super) fn storage_key(&self, id: Id) -> Result<Rc<str>, String> {
        let key = self.text(id, "the key of a storage")?;
        if key.len() > MAX_STORAGE_KEY {
            return Err(too_long("key of a storage", &key, MAX_STORAGE_KEY));
        }
        Ok(key)
    }

    /// Returns the storage of a key, adding it if it is new. All declarations of a key must agree.
    pub(super) fn storage(&mut self, storage: Storage) -> Result<usize, String> {
        if let Some(&known) = self.storages_by_key.get(&storage.key) {
            let found = &self.storages[known];
            if found.element != storage.element || found.elements != storage.elements {
                return Err(format!("storage '{}' is declared twice and differs", storage.key));
            }
            return Ok(known);
        }
        if self.storages.len() == MAX_TENSORS {
            return Err(format!("more than {MAX_TENSORS} storages found"));
        }
        self.storages_by_key.insert(storage.key.clone(), self.storages.len());
        self.storages.push(storage);
        Ok(self.storages.len() - 1)
    }

    pub(super) fn storages(&self) -> &[Storage] {
        &self.storages
    }

    /// Returns the index of the storage with a key.
    pub(super) fn storage_of(&self, key: &str) -> Option<usize> {
        self.storages_by_key.get(key).copied()
    }

    /// Returns an integer as a size.
    pub(super) fn size(&self, id: Id, what: &str) -> Result<usize, String> {
        match self.get(id) {
            Value::Int(number) => {
                usize::try_from(*number).map_err(|_| format!("{what} {number} is out of range"))
            }
            other => Err(format!("{what} is {}, expected a number", kind(other))),
        }
    }

    /// Returns a text, or a number as text.
    pub(super) fn text(&self, id: Id, what: &str) -> Result<Rc<str>, String> {
        match self.get(id) {
            Value::Text(text) => Ok(text.clone()),
            Value::Int(number) => Ok(number.to_string().into()),
            other => Err(format!("{what} is {}, expected text", kind(other))),
        }
    }

    /// Returns the tensors below a dictionary: keys are joined by dots, items of lists are numbered.
    pub(super) fn leaves(&self, root: Id) -> Result<Vec<(String, Leaf<'_>)>, String> {
        let root = self.get(root);
        if !matches!(root, Value::Dict(_)) {
            return Err(format!("{} found, expected a dictionary of tensors", kind(root)));
        }
        let mut walk = Walk { objects: self, leaves: Vec::new(), visits: 0, key_bytes: 0 };
        walk.visit(root, &mut String::new(), 0)?;
        Ok(walk.leaves)
    }
}

struct Walk<'a> {
    objects: &'a Objects,
    leaves: Vec<(String, Leaf<'a>)>,
    visits: usize,
    key_bytes: usize,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, value: &'a Value, path: &mut String, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err("its dictionaries are nested too deeply".into());
        }
        match value {
            Value::Dict(entries) => {
                for (key, &entry) in entries {
                    self.step(key, entry, path, depth)?;
                }
            }
            Value::Sequence(items) => {
                for (index, &item) in items.iter().enumerate() {
                    self.step(&index.to_string(), item, path, depth)?;
                }
            }
            Value::Tensor(view) => self.leaf(path, Leaf::Tensor(view))?,
            Value::Unreadable(what) => self.leaf(path, Leaf::Unreadable(what))?,
            _ => {}
        }
        Ok(())
    }

    fn step(&mut self, name: &str, id: Id, path: &mut String, depth: usize) -> Result<(), String> {
        self.visits += 1;
        if self.visits > MAX_VISITS {
            return Err(format!("its dictionaries and lists have more than {MAX_VISITS} items"));
        }
        if !self.objects.has_tensors(id) {
            return Ok(());
        }
        self.count_key(name)?;
        let length = path.len();
        if length > 0 {
            path.push('.');
        }
        path.push_str(name);
        self.visit(self.objects.get(id), path, depth + 1)?;
        path.truncate(length);
        Ok(())
    }

    fn leaf(&mut self, path: &str, leaf: Leaf<'a>) -> Result<(), String> {
        self.count_key(path)?;
        if self.leaves.len() == MAX_TENSORS {
            return Err(format!("more than {MAX_TENSORS} tensors found"));
        }
        self.leaves.push((path.to_string(), leaf));
        Ok(())
    }

    /// Counts the bytes of a key that is copied; returns an error above [`MAX_KEY_BYTES`].
    fn count_key(&mut self, key: &str) -> Result<(), String> {
        self.key_bytes += key.len();
        if self.key_bytes > MAX_KEY_BYTES {
            return Err(format!("its keys have more than {MAX_KEY_BYTES} bytes"));
        }
        Ok(())
    }
}

fn too_long(what: &str, text: &str, most: usize) -> String {
    format!("a {what} of {} bytes found, expected at most {most}", text.len())
}

/// Describes an object for messages.
pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::None => "None".into(),
        Value::Bool(_) => "a truth value".into(),
        Value::Int(_) => "a number".into(),
        Value::Text(_) => "text".into(),
        Value::Class(name) => format!("the class {name}"),
        Value::Sequence(_) => "a list".into(),
        Value::Dict(_) => "a dictionary".into(),
        Value::Object(name) => format!("an object of {name}"),
        Value::Storage(_) => "a storage".into(),
        Value::Tensor(_) => "a tensor".into(),
        Value::Unreadable(what) => what.reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreadable() -> Value {
        Value::Unreadable(Box::new(Unreadable { shape: vec![2], reason: "test".into() }))
    }

    fn keys(objects: &Objects, root: Id) -> Result<Vec<String>, String> {
        let leaves = objects.leaves(root)?;
        Ok(leaves.into_iter().map(|(key, _)| key).collect())
    }

    #[test]
    fn one_object_is_found_under_all_its_names() {
        let mut objects = Objects::default();
        let tensor = objects.add(unreadable()).unwrap();
        let inner = objects.add(Value::Dict(BTreeMap::new())).unwrap();
        let root = objects.add(Value::Dict(BTreeMap::new())).unwrap();
        let mut text = |name: &str| objects.add(Value::Text(name.into())).unwrap();
        let [a, model, ema] = ["a", "model", "ema"].map(&mut text);
        let list = objects.add(Value::Sequence(vec![tensor, tensor])).unwrap();
        objects.set_items(inner, &[a, list]).unwrap();
        objects.set_items(root, &[model, inner, ema, inner]).unwrap();
        assert_eq!(keys(&objects, root).unwrap(), ["ema.a.0", "ema.a.1", "model.a.0", "model.a.1"]);
        assert!(objects.leaves(tensor).is_err());
    }

    #[test]
    fn objects_that_contain_themselves_are_rejected() {
        let mut objects = Objects::default();
        let tensor = objects.add(unreadable()).unwrap();
        let root = objects.add(Value::Dict(BTreeMap::new())).unwrap();
        let mut text = |name: &str| objects.add(Value::Text(name.into())).unwrap();
        let [a, b] = ["a", "b"].map(&mut text);
        objects.set_items(root, &[a, tensor, b, root]).unwrap();
        assert!(keys(&objects, root).unwrap_err().contains("too deeply"));
    }

    #[test]
    fn tensors_are_counted() {
        let mut objects = Objects::default();
        for _ in 0..MAX_TENSORS {
            objects.add(unreadable()).unwrap();
        }
        objects.add(Value::None).unwrap();
        let error = objects.add(unreadable()).unwrap_err();
        assert_eq!(error, "65537 tensors found, expected at most 65536");
    }

    #[test]
    fn dictionaries_of_the_greatest_depth_are_walked() {
        let of = |depth: usize| {
            let mut objects = Objects::default();
            let key = objects.add(Value::Text("k".into())).unwrap();
            let mut root = objects.add(unreadable()).unwrap();
            for _ in 0..depth {
                let dict = objects.add(Value::Dict(BTreeMap::new())).unwrap();
                objects.set_items(dict, &[key, root]).unwrap();
                root = dict;
            }
            keys(&objects, root)
        };
        assert_eq!(of(MAX_DEPTH), Ok(vec![["k"; MAX_DEPTH].join(".")]));
        for depth in [MAX_DEPTH + 1, MAX_DEPTH + 2] {
            assert_eq!(of(depth).unwrap_err(), "its dictionaries are nested too deeply");
        }
    }

    #[test]
    fn many_paths_to_one_object_are_bounded() {
        let mut objects = Objects::default();
        let mut list = objects.add(unreadable()).unwrap();
        for _ in 0..30 {
            list = objects.add(Value::Sequence(vec![list, list])).unwrap();
        }
        let root = objects.add(Value::Dict(BTreeMap::new())).unwrap();
        let key = objects.add(Value::Int(7)).unwrap();
        objects.set_items(root, &[key, list]).unwrap();
        assert!(keys(&objects, root).is_err());
    }

    #[test]
    fn items_without_tensors_are_counted_on_every_path() {
        let mut objects = Objects::default();
        let tensor = objects.add(unreadable()).unwrap();
        let nothing = objects.add(Value::None).unwrap();
        let items = [vec![nothing; 1000], vec![tensor]].concat();
        let list = objects.add(Value::Sequence(items)).unwrap();
        let mut of = |lists: usize| {
            let lists = objects.add(Value::Sequence(vec![list; lists])).unwrap();
            let root = objects.add(Value::Dict(BTreeMap::new())).unwrap();
            let key = objects.add(Value::Int(7)).unwrap();
            objects.set_items(root, &[key, lists]).unwrap();
            keys(&objects, root).map(|keys| keys.len())
        };
        assert_eq!(of(1000), Ok(1000));
        assert!(of(1100).unwrap_err().contains("items"));
        // One list below the root.
        let mut of = |visits: usize| {
            let items = [vec![nothing; visits - 2], vec![tensor]].concat();
            let list = objects.add(Value::Sequence(items)).unwrap();
            let root = objects.add(Value::Dict(BTreeMap::new())).unwrap();
            let key = objects.add(Value::Int(7)).unwrap();
            objects.set_items(root, &[key, list]).unwrap();
            keys(&objects, root).map(|keys| keys.len())
        };
        assert_eq!(of(MAX_VISITS), Ok(1));
        assert!(of(MAX_VISITS + 1).unwrap_err().contains("more than 1048576 items"));
    }

    #[test]
    fn long_keys_are_rejected() {
        let mut objects = Objects::default();
        let tensor = objects.add(unreadable()).unwrap();
        let root = objects.add(Value::Dict(BTreeMap::new())).unwrap();
        let [long, longer] =
            [MAX_KEY, MAX_KEY + 1].map(|n| objects.add(Value::Text("x".repeat(n).into())).unwrap());
        objects.set_items(root, &[long, tensor]).unwrap();
        let error = objects.set_items(root, &[longer, tensor]).unwrap_err();
        assert_eq!(error, "a key of 4097 bytes found, expected at most 4096");
        let error = objects.storage_key(long).unwrap_err();
        assert_eq!(error, "a key of a storage of 4096 bytes found, expected at most 256");
        let key = objects.add(Value::Int(94_281_246_573_824)).unwrap();
        assert_eq!(objects.storage_key(key).unwrap(), "94281246573824".into());
    }

    #[test]
    fn keys_are_counted_where_they_are_joined() {
        let mut objects = Objects::default();
        let key = objects.add(Value::Text("x".repeat(MAX_KEY).into())).unwrap();
        // Lists that hold tensors, under keys that are as long as may be, and no tensor is reached.
        let storage =
            objects.add(Value::Storage(StorageView { storage: 0, start: 0, end: 0 })).unwrap();
        let inner = objects.add(Value::Dict(BTreeMap::new())).unwrap();
        objects.set_items(inner, &[key, storage]).unwrap();
        let most = MAX_KEY_BYTES / MAX_KEY;
        let mut of = |count: usize| {
            let lists = objects.add(Value::Sequence(vec![inner; count])).unwrap();
            let root = objects.add(Value::Dict(BTreeMap::new())).unwrap();
            objects.set_items(root, &[key, lists]).unwrap();
            keys(&objects, root).map(|keys| keys.len())
        };
        assert_eq!(of(most - 10), Ok(0));
        assert!(of(most).unwrap_err().contains("bytes"));
    }

    #[test]
    fn keys_of_the_largest_total_size_are_read() {
        let mut objects = Objects::default();
        let mut text = |name: &str| objects.add(Value::Text(name.repeat(MAX_KEY).into())).unwrap();
        let [a, b] = ["a", "b"].map(&mut text);
        let storage =
            objects.add(Value::Storage(StorageView { storage: 0, start: 0, end: 0 })).unwrap();
        let mut dict = |entries: &[Id]| {
            let dict = objects.add(Value::Dict(BTreeMap::new())).unwrap();
            objects.set_items(dict, entries).unwrap();
            dict
        };
        // A binary tree, whose keys are counted on each path: 2 + 4 + ... + 2048.
        let tree = (0..11).fold(storage, |tree, _| dict(&[a, tree, b, tree]));
        let root = dict(&[a, tree, b, storage]);
        assert_eq!((4094 + 2) * MAX_KEY, MAX_KEY_BYTES);
        assert_eq!(keys(&objects, root), Ok(vec![]));
        let one = objects.add(Value::Int(1)).unwrap();
        objects.set_items(root, &[one, storage]).unwrap();
        assert_eq!(keys(&objects, root).unwrap_err(), "its keys have more than 16777216 bytes");
    }
}
