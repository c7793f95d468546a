//! Packed weights as burn parameters.
//!
//! A burn mapper visits parameters, not layers. To let it pack a weight by its path, the packed form is a reparameterization of the
//! parameter, whose own values are gone. The parameter still has a shape and is counted.

use std::any::Any;
use std::sync::Arc;

use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::prelude::*;

use crate::device::Precision;
use crate::kernels::{self, PackedWeight};

/// Packs a linear layer's weight `[in, out]` for products in `precision` and frees its values. A weight that cannot be packed, such as
/// an empty one, stays as it is. A packed weight cannot be trained or saved.
pub(crate) fn pack<const D: usize>(weight: Param<Tensor<D>>, precision: Precision) -> Param<Tensor<D>> {
    let values = weight.val();
    let matrix = (&values as &dyn Any).downcast_ref::<Tensor<2>>();
    match matrix.and_then(|matrix| kernels::pack(matrix, precision)) {
        Some(packed) => attach(weight, packed),
        None => weight,
    }
}

/// Replaces a linear layer's weight by a packed one; `None` if its sizes differ.
pub(crate) fn replace_packed<const D: usize>(weight: Param<Tensor<D>>, packed: PackedWeight) -> Option<Param<Tensor<D>>> {
    (weight.lazy_shape().as_slice() == packed.dims()).then(|| attach(weight, packed))
}

/// Returns the packed form of a weight, if it has one.
pub(crate) fn packed<const D: usize>(weight: &Param<Tensor<D>>) -> Option<&Arc<PackedWeight>> {
    weight.reparameterization::<PackedParam>().map(|param| &param.packed)
}

/// The packed form of a weight.
#[derive(Module, Debug)]
struct PackedParam {
    #[module(skip)]
    packed: Arc<PackedWeight>,
}

/// The panic message for uses that need the values of a packed weight.
const IS_PACKED: &str = "these weights are packed: open the model in f32 to train or save it";

impl Reparameterization for PackedParam {
    const NAME: &'static str = "packed";

    fn apply<const D: usize>(&self, _: Tensor<D>) -> Tensor<D> {
        panic!("{IS_PACKED}")
    }
}

/// Attaches a packed weight to a parameter without values.
fn attach<const D: usize>(weight: Param<Tensor<D>>, packed: PackedWeight) -> Param<Tensor<D>> {
    let no_values = |_: &Device, _: bool| panic!("{IS_PACKED}");
    let (device, shape) = (weight.lazy_device(), weight.lazy_shape());
    let param: Param<Tensor<D>> = Param::uninitialized(weight.id, no_values, device, false, shape);
    param.apply_reparameterization(AttachOnce(Some(PackedParam { packed: Arc::new(packed) })))
}

/// Attaches a packed weight to the first parameter that it visits.
struct AttachOnce(Option<PackedParam>);

impl Reparameterizer for AttachOnce {
    type Reparam = PackedParam;

    fn reparameterize<const D: usize>(&mut self, _: &str, param: Param<Tensor<D>>) -> (Param<Tensor<D>>, Option<Self::Reparam>) {
        (param, self.0.take())
    }
}

#[cfg(test)]
mod tests {
    use burn::module::ParamId;

    use super::*;
    use crate::kernels::testing::{assert_close, wave};
    use crate::nn::LinearConfig;

    /// The products of a packed layer are close to those of the plain one, and its weight is still counted.
    #[test]
    fn a_packed_layer_is_close() {
        let device = Device::flex();
        let weight = wave([9, 60], 0.9, &device) * 3.0; // [out, in]
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.3), (Precision::Int8, 0.6)] {
            let mut layer = LinearConfig::new(60, 9).init(&device);
            layer.weight = Param::initialized(ParamId::new(), weight.clone().transpose());
            let x = wave([2, 50, 60], 0.31, &device) * 3.0;
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
