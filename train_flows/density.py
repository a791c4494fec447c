from train_flows import recipes, command_line
from train_flows.settings import DensitySettings
from cnf.models import KIND
from train_flows.data import known_density_data
PROGRAM = command_line.Program(
    name="density",
    about="Train a continuous normalizing flow on samples, evaluate it on held-out samples and draw it. Defaults depend on the data: ask for them with train-flows density DATA --help.",
    kind=KIND, recipe=recipes.density, known=known_density_data,
    common="source jitter image_size data_root download field hidden extra augmentation divergence objective steps batch_size lr solver rtol atol out seed device overwrite budget_minutes resume".split(),
    api_only="train_size test_size correlated probes noise dequantization alpha first_step lr_warm_up clip weight_decay likelihood_from restart_lr max_skipped kl_warm_up".split(),
)
def main(args):
    s, line = command_line.parse(PROGRAM, DensitySettings(), args)
    print(s); print(line)
