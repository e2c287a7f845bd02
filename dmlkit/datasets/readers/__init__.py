"""One reader per data set: what its files list, in its official layout, and what is published."""

from types import ModuleType

from dmlkit.datasets.readers import (
    cars196,
    class_folder,
    compcars,
    cub200_2010,
    cub200_2011,
    fashion200k,
    in_shop,
    list_files,
    nabirds,
    omniglot,
    stanford_online_products,
)

READERS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        cub200_2011,
        cars196,
        stanford_online_products,
        in_shop,
        cub200_2010,
        omniglot,
        nabirds,
        compcars,
        fashion200k,
        list_files,
        class_folder,
    )
}
