use burn::nn::{Linear, LinearConfig};

use super::*;
use crate::kernels::testing::{gpu, wave};

/// Runs Muon, AdamW and clipping under both strategies, over several steps that carry state.
#[test]
fn steps_on_a_gpu_equal_the_cpus() {
    let options = OptimizerOptions {
        learning_rate: 1e-2,
        warmup: 2,
        steps: 10,
        final_ratio: 0.1,
        weight_decay: 0.1,
        beta_2: 0.99,
        muon: true,
        clip: 1.0,
        average: 0.9,
    };
    let run = |device: &Device| {
        let tracked = device.clone().autodiff();
        let mut layers: Vec<Linear> = Vec::new();
        for (from, to) in [(40, 48), (48, 40), (40, 48), (48, 7)] {
            let mut layer = LinearConfig::new(from, to).init(&tracked);
            layer.weight = layer.weight.map(|_| wave([from, to], 0.37, &tracked).require_grad());
            layer.bias = layer.bias.map(|bias| bias.map(|_| wave([to], 0.7, &tracked).require_grad()));
            layers.push(layer);
        }
        let mut optimizer = ModuleOptimizer::new(&layers, options);
        let mut norms = Vec::new();
        for step in 0..4 {
            let x: Tensor<2> = wave([5, 40], 0.3 + step as f32, &tracked);
            let y = layers.iter().fold(x, |x, layer| layer.forward(x).tanh());
            let gradients = GradientsParams::from_grads((y.square().sum() * 3.0).backward(), &layers);
            let norm;
            (layers, norm) = optimizer.update(layers, vec![gradients], step);
            norms.push(norm);
        }
        (norms, optimizer.state())
    };
    let ((norms, got), (other_norms, want)) = (run(&gpu()), run(&Device::flex()));
    assert!(norms.iter().zip(&other_norms).all(|(got, want)| (got / want - 1.0).abs() < 1e-2), "{norms:?} and not {other_norms:?}");
    for (got, want) in got.iter().zip(&want) {
        assert_eq!((&got.name, &got.shape), (&want.name, &want.shape));
        let most = want.values.iter().fold(1e-2f32, |most, v| most.max(v.abs()));
        let error = got.values.iter().zip(&want.values).map(|(g, w)| (g - w).abs() / most).fold(0.0, f32::max);
        assert!(error < 2e-2, "{}: off by {error}", got.name);
    }
}
