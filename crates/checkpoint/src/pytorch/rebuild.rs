//! Rebuilds tensors, dictionaries and modules from the calls in a pickle. Results of other calls are
//! placeholders.
//!
//! Source: PyTorch, `torch/_utils.py` (`_rebuild_*`), `torch/serialization.py` (persistent ids), and
//! `torch/nn/modules/module.py` (`state_dict`).

use super::{
    objects::{Element, Id, MAX_KEY, Objects, Storage, StorageView, Unreadable, Value, View, kind},
    pickle::Unpickler,
};
use burn::tensor::{BoolStore, DType};
use opensora_files::one_line;
use std::{
    collections::{BTreeMap, HashSet},
    rc::Rc,
};

/// Maximum number of axes of a tensor.
const MAX_RANK: usize = 16;

/// Maximum nesting depth of calls in the arguments of calls.
const MAX_NESTED: usize = 8;

/// Name of what is called without being a class or function by name.
const UNNAMED: &str = "an unnamed function";

/// Returns the object that calling `class` with `arguments` would make.
pub(super) fn call(
    unpickler: &mut Unpickler<'_>,
    mut class: Id,
    mut arguments: Id,
) -> Result<Id, String> {
    let objects = &mut unpickler.objects;
    for _ in 0..MAX_NESTED {
        let name = match objects.get(class) {
            Value::Class(name) => name.clone(),
            // Such as a nested class, which pickles before protocol 4 get by calling `getattr`. A
            // name that said what the callee is would grow with each call of a call's result.
            _ => UNNAMED.into(),
        };
        let Value::Sequence(fields) = objects.get(arguments) else {
            return Err(format!("{name} is called with {}", kind(objects.get(arguments))));
        };
        let [first, seventh, eighth] = [0, 6, 7].map(|place| fields.get(place).copied());
        match &*name {
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_qtensor" => {
                return tensor(objects, arguments, &name, 4, Extra::default());
            }
            "torch._utils._rebuild_tensor_v2" => {
                let extra = Extra { dtype: None, metadata: seventh };
                return tensor(objects, arguments, &name, 6, extra);
            }
            "torch._utils._rebuild_tensor_v3" => {
                let extra = Extra { dtype: seventh, metadata: eighth };
                return tensor(objects, arguments, &name, 7, extra);
            }
            // (data, requires_grad, hooks, state)
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                return first.ok_or_else(|| format!("{name} is called without a tensor"));
            }
            // (function, type, arguments, state): the tensor is what the function makes.
            "torch._tensor._rebuild_from_type_v2" => {
                let [function, _, inner, ..] = fields[..] else {
                    return Err(format!("{name} is called with {} arguments", fields.len()));
                };
                (class, arguments) = (function, inner);
            }
            "torch._utils._rebuild_sparse_tensor" => {
                // (layout, data)
                let shape = sparse_shape(objects, fields.get(1).copied());
                return unreadable(objects, shape, "sparse tensors are not supported".into());
            }
            "collections.OrderedDict" | "collections.defaultdict" | "collections.Counter" => {
                return dictionary(unpickler, first);
            }
            "torch.Size"
            | "builtins.set"
            | "builtins.frozenset"
            | "builtins.list"
            | "builtins.tuple"
            | "__builtin__.set"
            | "__builtin__.frozenset"
            | "__builtin__.list"
            | "__builtin__.tuple" => {
                return match first {
                    Some(items) => Ok(items),
                    None => objects.add(Value::Sequence(Vec::new())),
                };
            }
            _ if objects.has_tensors(arguments) || name.starts_with("torch._utils._rebuild_") => {
                return unreadable(objects, Vec::new(), not_supported(&name));
            }
            _ => return objects.add(Value::Object(name)),
        }
    }
    Err("its pickle nests calls too deeply".into())
}

fn not_supported(class: &str) -> String {
    format!("tensors made by {class} are not supported")
}

fn unreadable(objects: &mut Objects, shape: Vec<usize>, reason: String) -> Result<Id, String> {
    objects.add(Value::Unreadable(Box::new(Unreadable { shape, reason })))
}

/// Returns a dictionary of `pairs`; an empty one if there are none.
fn dictionary(unpickler: &mut Unpickler<'_>, pairs: Option<Id>) -> Result<Id, String> {
    let dict = unpickler.objects.add(Value::Dict(BTreeMap::new()))?;
    let Some(pairs) = pairs else { return Ok(dict) };
    // A pickle may copy one list into many dictionaries.
    unpickler.spend(length(&unpickler.objects, pairs))?;
    let pairs = match unpickler.objects.get(pairs) {
        Value::Sequence(pairs) => pairs.clone(),
        _ => Vec::new(),
    };
    let mut items = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        match unpickler.objects.get(pair) {
            Value::Sequence(pair) if pair.len() == 2 => items.extend(pair),
            other => return Err(format!("{} found, expected a key with its value", kind(other))),
        }
    }
    unpickler.objects.set_items(dict, &items)?;
    Ok(dict)
}

/// Arguments of a tensor that only some functions have.
#[derive(Default)]
struct Extra {
    /// The class of the element type, for untyped storages.
    dtype: Option<Id>,
    /// PyTorch's metadata of the tensor, such as `{'neg': True}` if its numbers are the negative of the
    /// storage's.
    metadata: Option<Id>,
}

/// Returns true if metadata may say that a tensor's numbers are not those of its storage.
fn changes_numbers(objects: &Objects, metadata: Option<Id>) -> bool {
    /// PyTorch writes two.
    const MAX_ENTRIES: usize = 16;
    let is_off = |&value: &Id| {
        matches!(objects.get(value), Value::None | Value::Bool(false) | Value::Int(0))
    };
    match metadata.map(|metadata| objects.get(metadata)) {
        None | Some(Value::None) => false,
        Some(Value::Dict(entries)) => entries.len() > MAX_ENTRIES || !entries.values().all(is_off),
        Some(_) => true,
    }
}

/// Returns the tensor of the arguments `(storage, offset, shape, strides, ..)`, at least `count`, of the
/// function `name`.
fn tensor(
    objects: &mut Objects,
    arguments: Id,
    name: &str,
    count: usize,
    extra: Extra,
) -> Result<Id, String> {
    let Value::Sequence(fields) = objects.get(arguments) else {
        return Err(format!("{name} is called with {}", kind(objects.get(arguments))));
    };
    if fields.len() < count {
        let found = fields.len();
        return Err(format!("{name} is called with {found} arguments, expected {count}"));
    }
    let [storage, offset, shape, strides] = [fields[0], fields[1], fields[2], fields[3]];
    let (offset, shape, strides) = (
        objects.size(offset, "the first element of a tensor")?,
        sizes(objects, shape, "a shape")?,
        sizes(objects, strides, "strides")?,
    );
    let &Value::Storage(reach) = objects.get(storage) else {
        return unreadable(objects, shape, not_supported(name));
    };
    let storage = &objects.storages()[reach.storage];
    let untyped = storage.element.name.is_empty();
    let element = match extra.dtype.map(|dtype| objects.get(dtype)) {
        Some(Value::Class(class)) => {
            let element = element_of_dtype(class.strip_prefix("torch.").unwrap_or(class));
            if !untyped && element != storage.element {
                return Err(format!(
                    "storage '{}' is of torch.{}, its tensor of torch.{}",
                    storage.key, storage.element.name, element.name
                ));
            }
            element
        }
        Some(other) => return Err(format!("the type of a tensor is {}", kind(other))),
        None if untyped => return Err(format!("storage '{}' has no type", storage.key)),
        None => storage.element.clone(),
    };
    let (Some(dtype), Some(size)) = (element.dtype, element.size) else {
        let reason = format!("element type torch.{} is not supported", element.name);
        return unreadable(objects, shape, reason);
    };
    if changes_numbers(objects, extra.metadata) {
        let reason =
            "tensors with metadata, such as a negative or conjugate bit, are not supported";
        return unreadable(objects, shape, reason.into());
    }
    // Sizes of untyped storages are in bytes.
    let available = if untyped { reach.end / size } else { reach.end };
    let offset = offset.saturating_add(reach.start);
    let end = end(&shape, &strides, offset).filter(|&end| end <= available).ok_or_else(|| {
        format!(
            "a tensor of shape {shape:?} and strides {strides:?} from element {offset} on leaves its \
             storage '{}' of {available}",
            storage.key
        )
    })?;
    let view = View { storage: reach.storage, dtype, offset, end, shape, strides };
    objects.add(Value::Tensor(Box::new(view)))
}

/// Returns one past the last element of a view; `None` on overflow, or if shape and strides differ in
/// length.
fn end(shape: &[usize], strides: &[usize], offset: usize) -> Option<usize> {
    if shape.len() != strides.len() {
        return None;
    }
    // The number of elements must not overflow either.
    if shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size))? == 0 {
        return Some(offset);
    }
    let mut axes = shape.iter().zip(strides);
    let last = axes.try_fold(offset, |last, (&size, &stride)| {
        last.checked_add((size - 1).checked_mul(stride)?)
    });
    last?.checked_add(1)
}

/// Returns the shape of a sparse tensor by its data: `(indices, values, size, ..)` in coordinate layout,
/// `(indices, indices, values, size)` in the compressed ones.
fn sparse_shape(objects: &Objects, data: Option<Id>) -> Vec<usize> {
    let Some(Value::Sequence(data)) = data.map(|data| objects.get(data)) else { return Vec::new() };
    let mut places = data.iter().skip(2).take(2);
    places.find_map(|&size| sizes(objects, size, "a shape").ok()).unwrap_or_default()
}

/// Returns the number of items of a list; zero for other objects.
fn length(objects: &Objects, list: Id) -> usize {
    match objects.get(list) {
        Value::Sequence(items) => items.len(),
        _ => 0,
    }
}

fn sizes(objects: &Objects, id: Id, what: &str) -> Result<Vec<usize>, String> {
    match objects.get(id) {
        Value::Sequence(items) if items.len() <= MAX_RANK => {
            items.iter().map(|&item| objects.size(item, what)).collect()
        }
        Value::Sequence(items) => Err(format!("a tensor has {} axes", items.len())),
        other => Err(format!("{what} is {}, expected a list", kind(other))),
    }
}

/// Applies the state of an object: a module becomes its `state_dict`.
pub(super) fn set_state(
    unpickler: &mut Unpickler<'_>,
    object: Id,
    state: Id,
) -> Result<(), String> {
    // A pickle may give one state to many objects.
    let work = Module::of(&unpickler.objects, state).map_or(0, |module| module.len());
    unpickler.spend(work)?;
    let objects = &unpickler.objects;
    // Attributes of dictionaries and tensors are not weights.
    let Value::Object(class) = objects.get(object) else { return Ok(()) };
    let class = class.clone();
    let value = match Module::of(objects, state) {
        Some(module) => Value::Dict(module.state_dict(objects)?),
        None if objects.has_tensors(state) => {
            let reason = not_supported(&class);
            Value::Unreadable(Box::new(Unreadable { shape: Vec::new(), reason }))
        }
        None => return Ok(()),
    };
    unpickler.objects.replace(object, value);
    Ok(())
}

type Table = BTreeMap<Rc<str>, Id>;

/// State of a pickled `torch.nn.Module`: its parameters, buffers and submodules.
struct Module<'a> {
    /// Parameters, buffers and submodules.
    tables: [&'a Table; 3],
    /// Names of buffers that are not part of the `state_dict`.
    not_persistent: &'a [Id],
}

impl<'a> Module<'a> {
    /// Returns the parts of `state`, if it is that of a module.
    fn of(objects: &'a Objects, state: Id) -> Option<Self> {
        let Value::Dict(attributes) = objects.get(state) else { return None };
        let attribute = |name: &str| attributes.get(name).map(|&value| objects.get(value));
        let table = |name: &str| match attribute(name) {
            Some(Value::Dict(table)) => Some(table),
            _ => None,
        };
        let tables = [table("_parameters")?, table("_buffers")?, table("_modules")?];
        let not_persistent = match attribute("_non_persistent_buffers_set") {
            Some(Value::Sequence(names)) => &names[..],
            _ => &[],
        };
        Some(Self { tables, not_persistent })
    }

    /// Returns the number of items that [`state_dict`](Self::state_dict) visits.
    fn len(&self) -> usize {
        self.tables.iter().map(|table| table.len()).sum::<usize>() + self.not_persistent.len()
    }

    fn state_dict(&self, objects: &Objects) -> Result<Table, String> {
        let names = self.not_persistent.iter().filter_map(|&name| match objects.get(name) {
            // Keys of buffers are not longer.
            Value::Text(name) if name.len() <= MAX_KEY => Some(&**name),
            _ => None,
        });
        let not_persistent: HashSet<&str> = names.collect();
        let [_, buffers, _] = self.tables;
        let mut entries = Table::new();
        for table in self.tables {
            for (name, &id) in table {
                if std::ptr::eq(table, buffers) && not_persistent.contains(&**name) {
                    continue;
                }
                if !matches!(objects.get(id), Value::None)
                    && entries.insert(name.clone(), id).is_some()
                {
                    return Err(format!("a module has '{name}' twice"));
                }
            }
        }
        Ok(entries)
    }
}

/// Returns the storage of a persistent id or, in files of whole models, the class.
pub(super) fn persistent(objects: &mut Objects, id: Id) -> Result<Id, String> {
    let Value::Sequence(fields) = objects.get(id) else {
        return Err(format!("a persistent id is {}, expected a list", kind(objects.get(id))));
    };
    let tag = match fields.first().map(|&tag| objects.get(tag)) {
        Some(Value::Text(tag)) => tag.clone(),
        _ => "".into(),
    };
    match (&*tag, &fields[..]) {
        // ("module", class, file, source)
        ("module", &[_, class, ..]) => Ok(class),
        // ("storage", class, key, device, elements, view)
        ("storage", &[_, class, key, _, count, ref view @ ..]) => {
            let key = objects.storage_key(key)?;
            let elements = objects.size(count, "the size of a storage")?;
            let element = match objects.get(class) {
                // Text may be as long as the pickle, and every element type carries its name.
                Value::Class(name) => element_of_storage(name),
                other => return Err(format!("the type of a storage is {}", kind(other))),
            };
            if elements.checked_mul(element.size.unwrap_or(1)).is_none() {
                return Err(format!("storage '{key}' has {elements} elements"));
            }
            let (start, end) = match view.first().map(|&view| objects.get(view)) {
                None | Some(Value::None) => (0, elements),
                // (key, first element, elements), in files from before PyTorch 0.4
                Some(Value::Sequence(view)) if view.len() == 3 => {
                    let start = objects.size(view[1], "the start of a storage's view")?;
                    let count = objects.size(view[2], "the size of a storage's view")?;
                    let end = start.checked_add(count).filter(|&end| end <= elements);
                    (start, end.ok_or_else(|| format!("a view leaves its storage '{key}'"))?)
                }
                Some(other) => return Err(format!("the view of a storage is {}", kind(other))),
            };
            let storage = objects.storage(Storage { key, element, elements })?;
            objects.add(Value::Storage(StorageView { storage, start, end }))
        }
        _ => Err(format!("a persistent id of kind '{}' found, expected a storage", one_line(tag))),
    }
}

/// Returns the element type of a storage class, such as `torch.FloatStorage`; its name is empty for
/// untyped storages.
fn element_of_storage(class: &str) -> Element {
    let class = class.rsplit('.').next().unwrap_or(class);
    element_of_dtype(match class.strip_suffix("Storage").unwrap_or(class) {
        "Float" => "float32",
        "Double" => "float64",
        "Half" => "float16",
        "BFloat16" => "bfloat16",
        "Long" => "int64",
        "Int" => "int32",
        "Short" => "int16",
        "Char" => "int8",
        "Byte" => "uint8",
        "Bool" => "bool",
        "ComplexFloat" => "complex64",
        "ComplexDouble" => "complex128",
        "QInt8" => "qint8",
        "QUInt8" => "quint8",
        "QInt32" => "qint32",
        "QUInt4x2" => "quint4x2",
        "QUInt2x4" => "quint2x4",
        "Untyped" => "",
        other => other,
    })
}

/// Returns the element type of a dtype name, such as `float32` of `torch.float32`.
fn element_of_dtype(name: &str) -> Element {
    let dtype = match name {
        "float64" | "double" => Some(DType::F64),
        "float32" | "float" => Some(DType::F32),
        "float16" | "half" => Some(DType::F16),
        "bfloat16" => Some(DType::BF16),
        "int64" | "long" => Some(DType::I64),
        "int32" | "int" => Some(DType::I32),
        "int16" | "short" => Some(DType::I16),
        "int8" => Some(DType::I8),
        "uint64" => Some(DType::U64),
        "uint32" => Some(DType::U32),
        "uint16" => Some(DType::U16),
        "uint8" => Some(DType::U8),
        "bool" => Some(DType::Bool(BoolStore::Native)),
        _ => None,
    };
    let size = match name {
        _ if dtype.is_some() => dtype.map(|dtype| dtype.size()),
        "complex128" => Some(16),
        "complex64" => Some(8),
        "complex32" | "qint32" => Some(4),
        "" | "qint8" | "quint8" | "quint4x2" | "quint2x4" => Some(1),
        _ => None,
    };
    Element { name: name.into(), dtype, size }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads a pickle and returns the value of its object.
    fn with_value<T>(pickle: &[u8], of: impl FnOnce(&Objects, &Value) -> T) -> Result<T, String> {
        let mut unpickler = Unpickler::new(pickle);
        let root = unpickler.load()?;
        Ok(of(&unpickler.objects, unpickler.objects.get(root)))
    }

    /// A storage of six 32-bit numbers under the key `0`, from its class to its place on the stack.
    const STORAGE: &[u8] = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06tQ";

    #[test]
    fn names_do_not_grow_with_calls_of_calls() {
        let chain = |start: &[u8], call: &[u8]| [start, &call.repeat(1000), b"."].concat();
        let name = with_value(&chain(b"cA\nB\n", b")R"), |_, value| kind(value)).unwrap();
        assert_eq!(name, "an object of an unnamed function");
        // The arguments contain a tensor, so each call returns a tensor that cannot be read.
        let start = [STORAGE, b"\x85q\x000cA\nB\n"].concat();
        let reason = with_value(&chain(&start, b"h\x00R"), |_, value| kind(value)).unwrap();
        assert_eq!(reason, "tensors made by an unnamed function are not supported");
        assert!(with_value(b"K\x01K\x02R.", |_, _| ()).is_err());
    }

    #[test]
    fn objects_with_tensors_in_their_state_cannot_be_read() {
        let of = |state: &[&[u8]]| {
            with_value(&[b"ca\nB\n)R", &state.concat()[..], b"\x85b."].concat(), |_, it| kind(it))
        };
        assert_eq!(of(&[STORAGE]).unwrap(), "tensors made by a.B are not supported");
        assert_eq!(of(&[b"K\x01"]).unwrap(), "an object of a.B");
    }

    #[test]
    fn views_stay_within_their_storage() {
        let of = |view: &[u8]| {
            let start = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06";
            with_value(&[start, view, b"tQ."].concat(), |_, value| match value {
                Value::Storage(view) => (view.start, view.end),
                other => panic!("{}", kind(other)),
            })
        };
        assert_eq!((of(b""), of(b"N")), (Ok((0, 6)), Ok((0, 6))));
        assert_eq!(of(b"(U\x01vK\x02K\x03t"), Ok((2, 5)));
        assert_eq!(of(b"(U\x01vK\x02K\x04t"), Ok((2, 6)));
        assert_eq!(of(b"(U\x01vK\x02K\x05t").unwrap_err(), "a view leaves its storage '0'");
        for view in [&b"(U\x01vK\x02t"[..], b"(U\x01vK\x02K\x03K\x04t", b"K\x01"] {
            let error = of(view).unwrap_err();
            assert!(error.starts_with("the view of a storage is "), "{error}");
        }
    }

    #[test]
    fn declarations_of_a_storage_agree() {
        let of = |class: &str, count: u8| {
            let class = format!("(U\x07storagectorch\n{class}\n");
            let again = [class.as_bytes(), b"U\x010U\x03cpuK", &[count], b"tQ"].concat();
            let pickle = [b"(", STORAGE, &again, b"t."].concat();
            with_value(&pickle, |objects, _| objects.storages().len())
        };
        assert_eq!(of("FloatStorage", 6), Ok(1));
        let differs = Err("storage '0' is declared twice and differs".to_string());
        assert_eq!((of("FloatStorage", 7), of("IntStorage", 6)), (differs.clone(), differs));
    }

    #[test]
    fn keys_of_storages_and_ranks_of_tensors_are_limited() {
        let key = |bytes: u16| {
            let key =
                [&b"X"[..], &u32::from(bytes).to_le_bytes(), &vec![b'k'; bytes.into()]].concat();
            let start = b"(U\x07storagectorch\nFloatStorage\n";
            with_value(&[start, &key[..], b"U\x03cpuK\x06tQ."].concat(), |_, _| ())
        };
        assert_eq!(key(256), Ok(()));
        assert!(key(257).unwrap_err().contains("key of a storage"));
        let tensor = |axes: usize| {
            let ones = [b"(", &b"K\x01".repeat(axes)[..], b"t"].concat();
            let start = b"ctorch._utils\n_rebuild_tensor_v2\n(";
            let pickle = [start, STORAGE, b"K\x00", &ones, &ones, b"\x89Nt", b"R."].concat();
            with_value(&pickle, |_, value| matches!(value, Value::Tensor(_)))
        };
        assert_eq!(tensor(MAX_RANK), Ok(true));
        assert_eq!(tensor(MAX_RANK + 1).unwrap_err(), "a tensor has 17 axes");
    }

    #[test]
    fn types_of_storages_are_classes() {
        let text = [b"X\x05\x00\x10\x00".to_vec(), vec![b'x'; (1 << 20) + 5]].concat();
        let of = |class: &[u8]| {
            let rest = b"U\x010U\x03cpuK\x06tQ.";
            with_value(&[b"(U\x07storage", class, rest].concat(), |objects, _| {
                objects.storages()[0].element.name.clone()
            })
        };
        assert_eq!(of(b"ctorch\nFloatStorage\n").unwrap(), "float32".into());
        assert_eq!(of(&text).unwrap_err(), "the type of a storage is text");
        assert_eq!(of(b"U\x0cFloatStorage").unwrap_err(), "the type of a storage is text");
    }

    #[test]
    fn shapes_of_sparse_tensors_are_found() {
        // The data of a call after its layout, and the shape.
        for (data, shape) in [
            (&b"(]K\x07aN(K\x03K\x04tt"[..], &[3, 4][..]),
            (b"(NN(K\x03K\x04t\x88t", &[3, 4]),
            (b"(NNN(K\x05tt", &[5]),
            (b"(]K\x07aNNN]K\x07at", &[]),
            (b"N", &[]),
        ] {
            let start = b"ctorch._utils\n_rebuild_sparse_tensor\n(N";
            let found = with_value(&[start, data, b"tR."].concat(), |_, value| match value {
                Value::Unreadable(tensor) => tensor.shape.clone(),
                other => panic!("{}", kind(other)),
            });
            assert_eq!(found.unwrap(), shape, "{data:?}");
        }
    }

    #[test]
    fn lists_that_are_used_again_count_as_instructions() {
        const COUNT: usize = 100_000;
        let list = [b"(".to_vec(), b"N".repeat(COUNT), b"lq\x000".to_vec()].concat();
        let pickle = |start: &[u8], again: &[u8], count: usize| {
            [&list, start, &again.repeat(count), b"."].concat()
        };
        // Modules that share a list of names, and have no buffers.
        let state = b"}(U\x0b_parameters}U\x08_buffers}U\x08_modules}\
                      U\x1b_non_persistent_buffers_seth\x00uq\x010";
        let module = b"ca\nB\n)Rh\x01b";
        with_value(&pickle(state, module, 2), |_, _| ()).unwrap();
        let error = with_value(&pickle(state, module, 5), |_, _| ()).unwrap_err();
        assert!(error.contains("instructions"), "{error}");
        // The list counts before it is looked at: its items are no pairs.
        let dict = b"ccollections\nOrderedDict\nh\x00\x85R";
        let error = with_value(&pickle(&b"N".repeat(300_000), dict, 1), |_, _| ()).unwrap_err();
        assert!(error.contains("instructions"), "{error}");
    }

    #[test]
    fn buffers_that_are_not_persistent_are_left_out() {
        let pickle = b"ca\nB\n)R}(U\x0b_parameters}U\x01pK\x01sU\x08_buffers}(U\x01bK\x02U\x01cK\x03u\
                       U\x08_modules}U\x01mK\x04sU\x1b_non_persistent_buffers_set](U\x01bU\x01pNeub.";
        let keys = with_value(pickle, |_, value| match value {
            Value::Dict(entries) => entries.keys().map(|key| key.to_string()).collect::<Vec<_>>(),
            other => panic!("{}", kind(other)),
        });
        assert_eq!(keys.unwrap(), ["c", "m", "p"]);
    }

    #[test]
    fn metadata_that_changes_numbers_is_not_ignored() {
        let of = |function: &str, metadata: &[u8]| {
            let start = format!("ctorch._utils\n{function}\n(").into_bytes();
            let rest: &[u8] = b"K\x00K\x06\x85K\x01\x85\x89N";
            let dtype: &[u8] = if function.ends_with("v3") { b"ctorch\nfloat32\n" } else { b"" };
            let pickle = [&start, STORAGE, rest, dtype, metadata, b"tR."].concat();
            with_value(&pickle, |_, value| match value {
                Value::Tensor(view) => view.shape.clone(),
                Value::Unreadable(tensor) => {
                    assert!(tensor.reason.contains("negative"), "{}", tensor.reason);
                    tensor.shape.iter().map(|_| 0).collect()
                }
                other => panic!("{}", kind(other)),
            })
        };
        for function in ["_rebuild_tensor_v2", "_rebuild_tensor_v3"] {
            for metadata in
                [&b""[..], b"N", b"}", b"}U\x03neg\x89s", b"}(U\x03negI00\nU\x04conj\x89u"]
            {
                assert_eq!(of(function, metadata).unwrap(), [6], "{function} {metadata:?}");
            }
            let entries = |count: u8| {
                let entries = (0..count).flat_map(|n| [b'K', n, b'N']).collect::<Vec<_>>();
                [&b"}("[..], &entries, b"u"].concat()
            };
            assert_eq!(of(function, &entries(16)).unwrap(), [6]);
            let many = entries(17);
            for metadata in [
                &b"}U\x03neg\x88s"[..],
                b"}(U\x03neg\x89U\x04conj\x88u",
                b"}U\x03negI1\ns",
                b"}U\x05otherU\x01xs",
                b"U\x03neg",
                &many,
            ] {
                assert_eq!(of(function, metadata).unwrap(), [0], "{function} {metadata:?}");
            }
        }
    }

    #[test]
    fn tensors_of_untyped_storages_have_their_own_type() {
        let of = |function: &str, elements: u8, dtype: &[u8]| {
            let start = format!("ctorch._utils\n{function}\n(").into_bytes();
            // 24 bytes.
            let storage = b"(U\x07storagectorch.storage\nUntypedStorage\nU\x010U\x03cpuK\x18tQ";
            let shape = [b"K\x00K".as_slice(), &[elements], b"\x85K\x01\x85\x89N"].concat();
            let pickle = [&start, &storage[..], &shape, dtype, b"tR."].concat();
            with_value(&pickle, |_, value| match value {
                Value::Tensor(view) => (view.dtype, view.end),
                other => panic!("{}", kind(other)),
            })
        };
        let v3 = |elements, dtype| of("_rebuild_tensor_v3", elements, dtype);
        assert_eq!(v3(6, b"ctorch\nfloat32\n"), Ok((DType::F32, 6)));
        assert_eq!(v3(12, b"ctorch\nbfloat16\n"), Ok((DType::BF16, 12)));
        for (elements, dtype) in [(7, &b"ctorch\nfloat32\n"[..]), (13, b"ctorch\nbfloat16\n")] {
            let error = v3(elements, dtype).unwrap_err();
            assert!(error.contains("leaves its storage '0'"), "{error}");
        }
        assert_eq!(v3(6, b"K\x01").unwrap_err(), "the type of a tensor is a number");
        let error = of("_rebuild_tensor_v2", 6, b"").unwrap_err();
        assert_eq!(error, "storage '0' has no type");
    }

    #[test]
    fn modules_hold_the_tensors_of_their_parameters() {
        let of = |parameter: &[u8]| {
            let start = b"ca\nB\n)R}(U\x0b_parameters}U\x01p";
            let rest = b"sU\x08_buffers}U\x08_modules}ub.";
            let pickle = [&start[..], parameter, rest].concat();
            let mut unpickler = Unpickler::new(&pickle);
            let root = unpickler.load().unwrap();
            assert!(matches!(unpickler.objects.get(root), Value::Dict(_)));
            unpickler.objects.has_tensors(root)
        };
        assert!(of(STORAGE) && !of(b"K\x01"));
    }

    #[test]
    fn views_end_where_their_last_element_does() {
        assert_eq!(end(&[2, 3], &[3, 1], 4), Some(10));
        assert_eq!(end(&[2, 3], &[1, 2], 0), Some(6));
        assert_eq!(end(&[], &[], 7), Some(8));
        assert_eq!(end(&[5, 0], &[1, 1], 7), Some(7));
        assert_eq!(end(&[1_000_000, 5], &[0, 0], 0), Some(1));
        for (shape, strides) in
            [(&[2][..], &[1, 1][..]), (&[usize::MAX, 2], &[0, 0]), (&[3], &[usize::MAX])]
        {
            assert_eq!(end(shape, strides, 0), None);
        }
    }

    #[test]
    fn names_of_types_are_those_of_pytorch() {
        assert_eq!(element_of_storage("torch.FloatStorage").dtype, Some(DType::F32));
        assert_eq!(element_of_storage("torch.cuda.HalfStorage").dtype, Some(DType::F16));
        assert_eq!(element_of_storage("torch.storage.UntypedStorage").name, "".into());
        let complex = element_of_storage("torch.ComplexDoubleStorage");
        assert_eq!((complex.dtype, complex.size), (None, Some(16)));
        let fp8 = element_of_dtype("float8_e4m3fn");
        assert_eq!((&*fp8.name, fp8.dtype), ("float8_e4m3fn", None));
        for (names, dtype) in [
            (&["float64", "double"][..], DType::F64),
            (&["float32", "float"], DType::F32),
            (&["float16", "half"], DType::F16),
            (&["bfloat16"], DType::BF16),
            (&["int64", "long"], DType::I64),
            (&["int32", "int"], DType::I32),
            (&["int16", "short"], DType::I16),
            (&["int8"], DType::I8),
            (&["uint64"], DType::U64),
            (&["uint32"], DType::U32),
            (&["uint16"], DType::U16),
            (&["uint8"], DType::U8),
            (&["bool"], DType::Bool(BoolStore::Native)),
        ] {
            for name in names {
                let element = element_of_dtype(name);
                assert_eq!((element.dtype, element.size), (Some(dtype), Some(dtype.size())));
            }
        }
        for (storage, dtype) in [
            ("Double", "float64"),
            ("Float", "float32"),
            ("Half", "float16"),
            ("BFloat16", "bfloat16"),
            ("Long", "int64"),
            ("Int", "int32"),
            ("Short", "int16"),
            ("Char", "int8"),
            ("Byte", "uint8"),
            ("Bool", "bool"),
            ("ComplexFloat", "complex64"),
            ("QInt8", "qint8"),
            ("QUInt8", "quint8"),
            ("QInt32", "qint32"),
            ("QUInt4x2", "quint4x2"),
            ("QUInt2x4", "quint2x4"),
        ] {
            let element = element_of_storage(&format!("torch.{storage}Storage"));
            assert_eq!(&*element.name, dtype, "{storage}");
        }
        for (dtype, size) in
            [("complex64", 8), ("complex32", 4), ("qint32", 4), ("quint4x2", 1), ("", 1)]
        {
            let element = element_of_dtype(dtype);
            assert_eq!((element.dtype, element.size), (None, Some(size)), "{dtype}");
        }
        assert_eq!(fp8.size, None);
    }
}
