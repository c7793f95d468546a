use burn::prelude::*;
use burn::tensor::FloatDType;

use super::super::{silu, silu_mul};
use super::assert_close;
use crate::kernels::testing::{gpu as device, on, wave};

#[test]
fn gates_equal_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    let (gate, up) = (wave([2, 50, 7], 0.7, &cpu) * 6.0, wave([2, 50, 7], 0.3, &cpu));
    assert_close("silu", silu(on(&gate, &gpu)).unwrap(), crate::kernels::silu(gate.clone()), 1e-5);
    let half = on(&gate, &gpu).cast(FloatDType::F16);
    assert_close("silu in f16", silu(half).unwrap(), crate::kernels::silu(gate.clone()), 2e-3);
    let want = crate::kernels::silu(gate.clone()) * up.clone();
    assert_close("silu_mul", silu_mul(on(&gate, &gpu), on(&up, &gpu)).unwrap(), want, 1e-5);
}
