//! Group norm and upsampling, the operations on feature maps other than convolution.

use burn::nn::GroupNormConfig;
use burn::prelude::*;

use super::super::{group_norm, upsample_nearest};
use super::assert_close;
use crate::kernels::testing::{gpu as device, on, wave};
use crate::nn::group_norm_params;

#[test]
fn feature_maps_equal_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    for (channels, groups, side) in [(32, 32, 5), (64, 32, 33), (320, 32, 9)] {
        let norm = |device: &Device| GroupNormConfig::new(groups, channels).with_epsilon(1e-6).init(device);
        let x = wave([2, channels, side, side], 0.7, &cpu) + 0.3;
        for (map, what) in [(on(&x, &gpu), "contiguous"), (on(&x.clone().swap_dims(2, 3), &gpu).swap_dims(2, 3), "view")] {
            assert_close(
                what,
                group_norm(map.clone(), &group_norm_params(&norm(&gpu)), false).unwrap(),
                norm(&cpu).forward(x.clone()),
                2e-4,
            );
            let want = crate::kernels::silu(norm(&cpu).forward(x.clone()));
            assert_close(what, group_norm(map.clone(), &group_norm_params(&norm(&gpu)), true).unwrap(), want, 2e-4);
            let want = x.clone().repeat_dim(2, 1).reshape([2 * channels, side, 1, side, 1]).repeat_dim(4, 2).repeat_dim(2, 2);
            let want = want.reshape([2, channels, 2 * side, 2 * side]);
            assert_close(what, upsample_nearest(&map).unwrap(), want, 0.0);
        }
    }
}

/// Means far from zero, which would cancel the digits of squares in f32.
#[test]
fn groups_far_from_zero_are_normed_as_on_the_cpu() {
    let (gpu, cpu) = (device(), Device::flex());
    let norm = |device: &Device| GroupNormConfig::new(4, 8).with_epsilon(1e-6).init(device);
    let x = wave([2, 8, 40, 40], 0.7, &cpu) * 0.5 + 300.0;
    assert_close(
        "far from zero",
        group_norm(on(&x, &gpu), &group_norm_params(&norm(&gpu)), false).unwrap(),
        norm(&cpu).forward(x),
        2e-3,
    );
}

/// Groups of one channel and of several, with and without SiLU.
#[cfg(feature = "train")]
#[test]
fn gradients_of_group_norms_equal_the_cpus() {
    use burn::module::{Param, ParamId};
    let cpu = Device::flex();
    for (channels, groups, side) in [(32, 32, 5), (64, 32, 33), (48, 8, 9)] {
        for silu in [false, true] {
            let results = |device: &Device| {
                let device = device.clone().autodiff();
                let mut norm = GroupNormConfig::new(groups, channels).with_epsilon(1e-6).init(&device);
                let (gain, bias) =
                    (wave::<1>([channels], 0.3, &device).require_grad(), wave::<1>([channels], 0.8, &device).require_grad());
                norm.gamma = Some(Param::initialized(ParamId::new(), gain.clone()));
                norm.beta = Some(Param::initialized(ParamId::new(), bias.clone()));
                let x = (wave([3, channels, side, side], 0.7, &device) + 0.3).detach().require_grad();
                let y = if silu {
                    crate::kernels::norm::group_norm_silu(x.clone(), &group_norm_params(&norm))
                } else {
                    crate::nn::group_norm(x.clone(), &norm)
                };
                let gradients = (y * wave([3, channels, side, side], 1.1, &device)).sum().backward();
                let rows = [gain.grad(&gradients), bias.grad(&gradients)].map(|g| on(&g.unwrap().reshape([1, -1]), &cpu));
                [vec![on(&x.grad(&gradients).unwrap().reshape([1, -1]), &cpu)], rows.to_vec()].concat()
            };
            for (what, (got, want)) in ["x", "gain", "bias"].iter().zip(results(&device()).into_iter().zip(results(&cpu))) {
                assert_close(&format!("{channels} channels, SiLU {silu}: {what}"), got, want, 2e-3);
            }
        }
    }
}
