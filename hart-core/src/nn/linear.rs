//! Linear layers.

use std::any::Any;
use std::sync::Arc;

use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use crate::device::{Precision, is_cpu};
use crate::kernels::{self, PackedWeight, Weight};

/// Sizes of a linear layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearConfig {
    inputs: usize,
    outputs: usize,
    bias: bool,
}

impl LinearConfig {
    pub(crate) fn new(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, bias: true }
    }

    pub(crate) fn with_bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// Creates the layer with weights that are yet to be loaded, or initialised like burn's.
    pub(crate) fn init(self, device: &Device) -> Linear {
        let layer = burn::nn::LinearConfig::new(self.inputs, self.outputs).with_bias(self.bias).init(device);
        Linear { weight: layer.weight, bias: layer.bias }
    }
}

/// A linear layer, named and stored like burn's, whose weight may be [packed](pack).
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`.
    pub(crate) weight: Param<Tensor<2>>,
    /// `[out]`.
    pub(crate) bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Computes `x W + b`. On a GPU the output has the type of the weight.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, tokens, in]`
    /// - output: `[batch, tokens, out]`
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::linear(x, &self.weight(), self.bias().as_ref())
    }

    /// Like [`Self::forward`], with an output in f32 whatever the type of the weight.
    pub(crate) fn forward_to_f32(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::linear_to_f32(x, &self.weight(), self.bias().as_ref())
    }

    /// Returns x in the type that the layer's product reads, so that several layers can share one conversion.
    pub(crate) fn cast_input(&self, x: Tensor<3>) -> Tensor<3> {
        if is_cpu(&x.device()) { x } else { x.cast(FloatDType::from(self.weight.val().dtype())) }
    }

    /// Returns the weight as kernels read it.
    pub(crate) fn weight(&self) -> Weight {
        match self.weight.reparameterization::<PackedParam>() {
            Some(PackedParam { packed }) => Weight::Packed(packed.clone()),
            None => Weight::Dense(self.weight.val()),
        }
    }

    /// Returns the precision of the weight.
    pub(crate) fn precision(&self) -> Precision {
        match self.weight() {
            Weight::Packed(packed) => packed.precision(),
            Weight::Dense(weight) => match weight.dtype() {
                DType::F16 => Precision::F16,
                DType::BF16 => Precision::Bf16,
                _ => Precision::F32,
            },
        }
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Param::val)
    }
}

/// The packed form of a weight, attached to its parameter. burn's mappers see parameters and not layers, so that only what hangs on
/// a parameter can be packed by its path.
#[derive(Module, Debug)]
struct PackedParam {
    #[module(skip)]
    packed: Arc<PackedWeight>,
}

/// Why a packed weight has no values.
const IS_PACKED: &str = "these weights are packed: open the model in f32 to train or save it";

impl Reparameterization for PackedParam {
    const NAME: &'static str = "packed";

    fn apply<const D: usize>(&self, _: Tensor<D>) -> Tensor<D> {
        panic!("{IS_PACKED}")
    }
}

/// Attaches a packed weight to one parameter.
struct Attach(Option<PackedParam>);

impl Reparameterizer for Attach {
    type Reparam = PackedParam;

    fn reparameterize<const D: usize>(&mut self, _: &str, param: Param<Tensor<D>>) -> (Param<Tensor<D>>, Option<Self::Reparam>) {
        (param, self.0.take())
    }
}

/// Packs a linear layer's weight `[in, out]` for products in `precision` and frees its values. A weight that cannot be packed, such as
/// an empty one, stays as it is. A packed weight is still counted as a parameter, but cannot be trained or saved.
pub(crate) fn pack<const D: usize>(weight: Param<Tensor<D>>, precision: Precision) -> Param<Tensor<D>> {
    let values = weight.val();
    let matrix = (&values as &dyn Any).downcast_ref::<Tensor<2>>();
    match matrix.and_then(|matrix| kernels::pack(matrix, precision)) {
        Some(packed) => attach(weight, packed),
        None => weight,
    }
}

/// Replaces a linear layer's weight by one that was packed before; `None` if it has other sizes.
pub(crate) fn replace_packed<const D: usize>(weight: Param<Tensor<D>>, packed: PackedWeight) -> Option<Param<Tensor<D>>> {
    (weight.lazy_shape().as_slice() == packed.dims()).then(|| attach(weight, packed))
}

fn attach<const D: usize>(weight: Param<Tensor<D>>, packed: PackedWeight) -> Param<Tensor<D>> {
    let no_values = |_: &Device, _: bool| panic!("{IS_PACKED}");
    let (device, shape) = (weight.lazy_device(), weight.lazy_shape());
    let param: Param<Tensor<D>> = Param::uninitialized(weight.id, no_values, device, false, shape);
    param.apply_reparameterization(Attach(Some(PackedParam { packed: Arc::new(packed) })))
}

/// Returns the packed form of a parameter, if it has one.
pub(crate) fn packed<const D: usize>(weight: &Param<Tensor<D>>) -> Option<&PackedWeight> {
    weight.reparameterization::<PackedParam>().map(|weight| &*weight.packed)
}

#[cfg(test)]
mod tests {
    use burn::module::ParamId;

    use super::*;
    use crate::kernels::{tensor, values};

    fn waves(count: usize, speed: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * speed).sin() * 3.0).collect()
    }

    fn assert_close(got: Tensor<3>, want: Tensor<3>, tolerance: f32) {
        assert_eq!(got.dims(), want.dims());
        let (got, want) = (values(got), values(want));
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= tolerance * w.abs().max(1.0)), "{got:?} and not {want:?}");
    }

    /// Weights as a checkpoint has them and as burn makes them, with and without bias, few rows and many.
    #[test]
    fn a_linear_layer_is_the_same_product_either_way() {
        let device = Device::flex();
        let weight = tensor(waves(9 * 6, 0.9), [1, 9, 6], &device).squeeze_dim::<2>(0); // [out, in]
        let bias = tensor(waves(9, 0.2), [1, 1, 9], &device);
        for (rows, with_bias) in [(1, false), (3, true), (70, true), (300, false)] {
            let x = tensor(waves(2 * rows * 6, 0.31), [2, rows, 6], &device);
            let turned = weight.clone().transpose();
            let mut want = x.clone().matmul(turned.clone().unsqueeze());
            let mut layer = LinearConfig::new(6, 9).with_bias(with_bias).init(&device);
            if with_bias {
                want = want + bias.clone();
                let id = ParamId::new();
                layer.bias = Some(Param::initialized(id, bias.clone().reshape([9])));
            }
            for weight in [turned.clone(), tensor(values(turned), [6, 9], &device)] {
                layer.weight = Param::initialized(ParamId::new(), weight);
                assert_close(layer.forward(x.clone()), want.clone(), 2e-6);
            }
        }
    }

    /// Packed, its products are close and its weight is still counted.
    #[test]
    fn a_packed_layer_is_close() {
        let device = Device::flex();
        let weight = tensor(waves(9 * 60, 0.9), [1, 9, 60], &device).squeeze_dim::<2>(0); // [out, in]
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.3), (Precision::Int8, 0.6)] {
            let mut layer = LinearConfig::new(60, 9).init(&device);
            layer.weight = Param::initialized(ParamId::new(), weight.clone().transpose());
            let x = tensor(waves(2 * 50 * 60, 0.31), [2, 50, 60], &device);
            let want = layer.forward(x.clone());
            layer.weight = pack(layer.weight, precision);
            assert_eq!(packed(&layer.weight).is_some(), precision != Precision::F32);
            assert_eq!(layer.num_params(), 9 * 60 + 9);
            assert_close(layer.forward(x), want, tolerance);
        }
    }

    #[test]
    #[should_panic(expected = "open the model in f32")]
    fn a_packed_weight_can_not_be_trained() {
        let mut layer = LinearConfig::new(6, 9).init(&Device::flex());
        layer.weight = pack(layer.weight, Precision::Int8);
        layer.weight.val();
    }
}
