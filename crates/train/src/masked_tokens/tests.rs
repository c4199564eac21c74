//! Tests of the random draws, and of a tiny encoder that learns.

use super::*;
use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::{AdamWConfig, GradientsParams},
    tensor::{Device, Gradients},
};
use opensora_checkpoint::ParameterNames;
use opensora_nn::read::read_f64;
use opensora_t5::{T5Config, fit_tokenizer};
use std::collections::BTreeMap;

const LENGTH: usize = 12;

/// Captions in which the color determines the motion, so that its prediction needs the context.
fn captions() -> Vec<String> {
    let mut captions = Vec::new();
    for (color, motion) in [("red", "left"), ("green", "right"), ("blue", "up"), ("white", "down")]
    {
        for shape in ["circle", "square", "triangle"] {
            captions.push(format!("a {color} {shape} moving {motion}"));
        }
    }
    captions
}

struct World {
    tokenizer: T5Tokenizer,
    ids: Vec<Vec<u32>>,
    mask: TokenMask,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fit_tokenizer(captions(), 100).unwrap().save(folder.path()).unwrap();
        let tokenizer = T5Tokenizer::from_path(folder.path()).unwrap();
        let tokens = tokenizer.encode_batch(&captions(), LENGTH).unwrap();
        let (ids, rows) = tokens.into_iter().map(|tokens| (tokens.ids, tokens.mask)).unzip();
        Self { tokenizer, ids, mask: TokenMask::new(rows).unwrap() }
    }

    fn objective(&self) -> MaskedTokenLoss {
        MaskedTokenLoss::new(&MaskedTokens::default(), &self.tokenizer, 7).unwrap()
    }

    fn encoder(&self, device: &Device) -> T5Encoder {
        let config = T5Config {
            vocab_size: 100,
            d_model: 32,
            d_kv: 8,
            d_ff: 64,
            num_layers: 2,
            num_heads: 4,
            ..T5Config::default()
        };
        device.seed(3);
        config.init(device).unwrap()
    }

    fn indices(&self, step: usize) -> Vec<u64> {
        let batch = self.ids.len();
        (0..batch as u64).map(|row| (step * batch) as u64 + row).collect()
    }
}

#[test]
fn draws_depend_on_seed_and_index_only_and_exclude_end_and_padding() {
    let world = World::new();
    let objective = world.objective();
    let all = objective.draw(&world.ids, &world.mask, &world.indices(0));
    assert_eq!(objective.draw(&world.ids, &world.mask, &world.indices(0)), all);
    assert_ne!(objective.draw(&world.ids, &world.mask, &world.indices(1)).chosen, all.chosen);
    for row in 0..world.ids.len() {
        let alone =
            objective.draw(&world.ids[row..=row], &world.mask.select(row, row + 1), &[row as u64]);
        assert_eq!(alone.ids[0], all.ids[row]);
        assert!(!alone.chosen.is_empty());
    }
    for chosen in &all.chosen {
        assert_eq!(chosen.id, world.ids[chosen.row][chosen.position]);
        assert!(world.mask.rows()[chosen.row][chosen.position]);
        assert_ne!(chosen.id, world.tokenizer.eos_id());
    }
}

#[test]
fn tokens_are_chosen_with_the_given_probabilities() {
    let world = World::new();
    // Long rows, so that the one token that every row has to give does not count.
    let ids = vec![vec![5u32; 1000]; 10];
    let indices: Vec<u64> = (0..10).collect();
    let masked = world.objective().draw(&ids, &TokenMask::all(10, 1000), &indices);
    let chosen = masked.chosen.len();
    let hidden = masked.ids.iter().flatten().filter(|&&id| id != 5).count();
    // Six standard deviations of binomials with n = 10,000 p = 0.25, and n = 2,500 p = 0.2.
    assert!(chosen.abs_diff(2500) < 260, "{chosen}");
    assert!((chosen - hidden).abs_diff(chosen / 5) < 120, "{chosen} {hidden}");
}

#[test]
fn the_first_loss_is_near_that_of_uniform_scores() {
    let world = World::new();
    let encoder = world.encoder(&Device::flex());
    let output = world.objective().loss(&encoder, &world.ids, &world.mask, &world.indices(0));
    let loss = output.loss.into_scalar::<f32>() as f64;
    let mean = mean(output.losses);
    assert!((loss - mean).abs() < 1e-5, "{loss} {mean}");
    // ln(100) = 4.6, and half a nat since the scores have a standard deviation of 1.
    assert!((3.5..6.5).contains(&loss), "{loss}");
}

#[test]
fn captions_without_tokens_have_no_loss() {
    let world = World::new();
    let encoder = world.encoder(&Device::flex().autodiff());
    let ids = vec![vec![world.tokenizer.eos_id(), world.tokenizer.pad_id()]];
    let mask = TokenMask::new(vec![vec![true, false]]).unwrap();
    let output = world.objective().loss(&encoder, &ids, &mask, &[0]);
    assert_eq!(read_f64(output.losses).unwrap(), [0.0]);
    assert_eq!(output.hits.dims(), [0]);
    assert_eq!(output.loss.clone().into_scalar::<f32>(), 0.0);
    output.loss.backward();
}

/// Ranks add numbers of masked tokens and of hits: each has some of the captions.
#[test]
fn a_batch_has_the_hits_of_its_captions() {
    let world = World::new();
    let encoder = world.encoder(&Device::flex());
    // Most captions have few chosen tokens, and some have no masked one.
    let recipe = MaskedTokens { keep_probability: 0.6, ..MaskedTokens::default() };
    let objective = MaskedTokenLoss::new(&recipe, &world.tokenizer, 7).unwrap();
    let hits = |rows: std::ops::Range<usize>| {
        let (mask, indices) = (world.mask.select(rows.start, rows.end), world.indices(0));
        let (ids, indices) = (&world.ids[rows.clone()], &indices[rows]);
        read_f64(objective.loss(&encoder, ids, &mask, indices).hits).unwrap()
    };
    let each: Vec<Vec<f64>> = (0..world.ids.len()).map(|row| hits(row..row + 1)).collect();
    assert!(each.iter().any(Vec::is_empty) && each.iter().any(|hits| !hits.is_empty()));
    assert_eq!(hits(0..world.ids.len()), each.concat());
}

#[test]
fn probabilities_out_of_range_are_rejected() {
    let world = World::new();
    for (mask_probability, keep_probability) in
        [(0.0, 0.1), (1.1, 0.1), (f64::NAN, 0.1), (0.25, 1.0), (0.25, -0.1), (0.25, f64::NAN)]
    {
        let recipe = MaskedTokens { mask_probability, keep_probability };
        let error = recipe.validate().unwrap_err().to_string();
        assert!(error.contains("_probability is"), "{error}");
        assert!(MaskedTokenLoss::new(&recipe, &world.tokenizer, 0).is_err());
    }
}

/// The largest absolute gradient of each parameter.
struct Largest<'a> {
    names: ParameterNames,
    gradients: &'a Gradients,
    found: BTreeMap<String, f32>,
}

impl ModuleVisitor for Largest<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(self.gradients);
        let largest = gradient.map_or(0.0, |gradient| gradient.abs().max().into_scalar::<f32>());
        self.found.insert(self.names.path(), largest);
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    let world = World::new();
    let encoder = world.encoder(&Device::flex().autodiff());
    let output = world.objective().loss(&encoder, &world.ids, &world.mask, &world.indices(0));
    let gradients = output.loss.backward();
    let mut visitor =
        Largest { names: ParameterNames::default(), gradients: &gradients, found: BTreeMap::new() };
    encoder.visit(&mut visitor);
    // Table, position bias, last norm; nine in each block.
    assert_eq!(visitor.found.len(), 3 + 2 * 9);
    for (name, largest) in visitor.found {
        assert!(largest.is_finite() && largest > 0.0, "{name}: {largest}");
    }
}

#[test]
fn a_tiny_encoder_learns_and_states_depend_on_the_context() {
    let world = World::new();
    let objective = world.objective();
    let mut encoder = world.encoder(&Device::flex().autodiff());
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    let (mut losses, mut accuracies) = (Vec::new(), Vec::new());
    for step in 0..120 {
        let output = objective.loss(&encoder, &world.ids, &world.mask, &world.indices(step));
        losses.push(mean(output.losses));
        accuracies.push(mean(output.hits));
        let gradients = GradientsParams::from_grads(output.loss.backward(), &encoder);
        encoder = optimizer.step(5e-3, encoder, gradients);
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (first, last) = (mean(&losses[..10]), mean(&losses[110..]));
    assert!(last < 0.3 * first, "{first} to {last}");
    // If shape or color and the motion are masked, the best accuracy for them is a third or a fourth.
    assert!(mean(&accuracies[110..]) > 0.6, "{accuracies:?}");

    // The state of "red" depends on the words after it in two captions that begin with "a red".
    let of_red = |row: usize| {
        let states = encoder.forward(&world.ids[row..=row], Some(&world.mask.select(row, row + 1)));
        states.narrow(1, 1, 1).reshape([32])
    };
    assert_eq!(world.ids[0][..2], world.ids[1][..2]);
    let (one, other) = (of_red(0), of_red(1));
    let norm = |x: Tensor<1>| (x.clone() * x).sum().into_scalar::<f32>().sqrt();
    let change = norm(one.clone() - other) / norm(one);
    assert!((0.02..1.0).contains(&change), "{change}");
}

fn mean(values: Tensor<1>) -> f64 {
    let values = read_f64(values).unwrap();
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn a_loss_that_is_not_finite_affects_its_caption_only() {
    let losses = Tensor::<1>::from_floats([1.0, f32::NAN, 4.0, f32::INFINITY], &Device::flex());
    let chosen = [0, 1, 0, 3].map(|row| Chosen { row, position: 0, id: 7 });
    let found = read_f64(mean_of_each_caption(losses, &chosen, &chosen_in(&chosen, 4))).unwrap();
    assert_eq!((found[0], found[2]), (2.5, 0.0));
    assert!(found[1].is_nan() && found[3].is_infinite(), "{found:?}");
}
