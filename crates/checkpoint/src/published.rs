//! The trait of models whose published weights can be loaded.

use crate::{Checkpoint, CheckpointError, ImportReport, KeyMap, check_import, import};
use burn::{
    module::Module,
    tensor::{Device, FloatDType},
};

/// A model whose published weights can be loaded.
///
/// A model says how it is built from its configuration and how its parameters are named in published
/// files; [`from_config`](Self::from_config), [`load`](Self::load) and [`check`](Self::check) follow from
/// that.
pub trait PublishedModel: Module {
    /// The model's configuration.
    type Config;
    /// Error for a configuration that no model can have.
    type ConfigError;
    /// Error for a model that cannot be loaded.
    type LoadError: From<Self::ConfigError> + From<CheckpointError>;

    /// Checks that a model of this configuration can be built without a panic.
    ///
    /// # Errors
    /// Returns an error if a value is out of range or belongs to another architecture.
    fn validate(config: &Self::Config) -> Result<(), Self::ConfigError>;

    /// Builds a model with fresh weights from a configuration that [`validate`](Self::validate) accepts.
    /// Weights are allocated when they are first used or loaded.
    fn build(config: &Self::Config, device: &Device) -> Self;

    /// Returns the number of blocks of a configuration and the name of the setting it comes from. It is
    /// compared with the file before the blocks are built.
    fn block_count(config: &Self::Config) -> (&'static str, usize);

    /// Returns the checkpoint without the wrappers that training programs put around a model; see
    /// [`Checkpoint::unwrapped`].
    ///
    /// # Errors
    /// Returns an error if the file contains several models and none is known to be the wanted one.
    fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError>;

    /// Returns the map from the model's parameters to the keys of an unwrapped checkpoint.
    ///
    /// # Errors
    /// Returns an error if the checkpoint is known to belong to another model with the same keys.
    fn key_map(config: &Self::Config, checkpoint: &Checkpoint) -> Result<KeyMap, CheckpointError>;

    /// Returns a model with fresh weights.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range.
    fn from_config(config: &Self::Config, device: &Device) -> Result<Self, Self::ConfigError> {
        Self::validate(config)?;
        Ok(Self::build(config, device))
    }

    /// Returns the model of a configuration, without allocating its weights, with the unwrapped
    /// checkpoint and its key map.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range, or the checkpoint has too few
    /// tensors for the configured blocks.
    fn describe(
        config: &Self::Config,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<Described<Self>, Self::LoadError> {
        Self::validate(config)?;
        let checkpoint = Self::unwrapped(checkpoint)?;
        let (name, blocks) = Self::block_count(config);
        checkpoint.check_blocks(name, blocks)?;
        let map = Self::key_map(config, &checkpoint)?;
        Ok(Described { model: Self::build(config, device), checkpoint, map })
    }

    /// Loads published weights in `dtype` onto `device`.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range, or the checkpoint cannot be read
    /// or does not fit the configuration.
    fn load(
        config: &Self::Config,
        checkpoint: &Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), Self::LoadError> {
        let Described { model, checkpoint, map } = Self::describe(config, checkpoint, device)?;
        Ok(import(model, &checkpoint, &map, dtype)?)
    }

    /// Checks that published weights fit, as [`load`](Self::load) does, reading only the file's headers.
    ///
    /// # Errors
    /// Returns the errors of [`load`](Self::load), except those of tensors that cannot be read.
    fn check(
        config: &Self::Config,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<ImportReport, Self::LoadError> {
        let Described { model, checkpoint, map } = Self::describe(config, checkpoint, device)?;
        Ok(check_import(&model, &checkpoint, &map)?)
    }
}

/// A model without allocated weights, and the checkpoint that it is loaded from.
pub struct Described<M> {
    /// The model. Its weights are not allocated.
    pub model: M,
    /// The checkpoint without wrappers.
    pub checkpoint: Checkpoint,
    /// The keys of the model's parameters in the checkpoint.
    pub map: KeyMap,
}
