//! PyTorch's names of the parameters of a burn module.

/// The name of the current parameter in a walk through a module. Call [`enter`](Self::enter) and
/// [`exit`](Self::exit) from `enter_module` and `exit_module` of a
/// [`ModuleVisitor`](burn::module::ModuleVisitor) or [`ModuleMapper`](burn::module::ModuleMapper).
#[derive(Debug, Default)]
pub struct ParameterNames {
    fields: Vec<String>,
    containers: Vec<String>,
}

impl ParameterNames {
    /// Enters `field` of the kind `container`.
    pub fn enter(&mut self, field: &str, container: &str) {
        self.fields.push(field.into());
        self.containers.push(container.into());
    }

    /// Leaves the current field.
    pub fn exit(&mut self) {
        self.fields.pop();
        self.containers.pop();
    }

    /// Returns true if PyTorch stores this parameter transposed: burn stores a linear layer's weight as
    /// `[in, out]`, PyTorch as `[out, in]`.
    pub fn is_transposed(&self) -> bool {
        self.containers.last().is_some_and(|c| c == "Struct:Linear")
            && self.fields.last().is_some_and(|f| f == "weight")
    }

    /// Returns the chain of field names with PyTorch's leaf name, such as `blocks.0.attn.qkv.weight`.
    pub fn path(&self) -> String {
        let mut fields = self.fields.clone();
        if self.containers.last().is_some_and(|c| c == "Struct:GroupNorm")
            && let Some(leaf) = fields.last_mut()
        {
            *leaf = if leaf == "gamma" { "weight".into() } else { "bias".into() };
        }
        fields.join(".")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(fields: &[(&str, &str)]) -> ParameterNames {
        let mut names = ParameterNames::default();
        fields.iter().for_each(|(field, container)| names.enter(field, container));
        names
    }

    #[test]
    fn weights_of_linear_layers_alone_are_transposed() {
        let of_mlp = |field, container| names(&[("mlp", "Struct:Mlp"), (field, container)]);
        assert!(of_mlp("weight", "Struct:Linear").is_transposed());
        assert!(!of_mlp("bias", "Struct:Linear").is_transposed());
        assert!(!of_mlp("weight", "Struct:Conv2d").is_transposed());
        assert!(!ParameterNames::default().is_transposed());
    }

    #[test]
    fn group_norms_have_weight_and_bias() {
        let mut names = names(&[("blocks", "Vec"), ("0", "Vec"), ("norm", "Struct:Block")]);
        names.enter("gamma", "Struct:GroupNorm");
        assert_eq!(names.path(), "blocks.0.norm.weight");
        names.exit();
        names.enter("beta", "Struct:GroupNorm");
        assert_eq!(names.path(), "blocks.0.norm.bias");
        names.exit();
        names.enter("gamma", "Struct:LayerNorm");
        assert_eq!(names.path(), "blocks.0.norm.gamma");
    }
}
