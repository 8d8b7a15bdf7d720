from paddle import nn


def replace_head(model, num_classes):
    width, _ = model.head.weight.shape
    model.head = nn.Sequential(nn.Linear(width, num_classes))
    model.head = model.head[0]
    return model


def freeze_backbone(model):
    for parameter in model.parameters():
        parameter.trainable = False
    for parameter in model.head.parameters():
        parameter.trainable = True
    return model


def parameter_groups(model, head_lr, backbone_lr):
    ids = {id(p) for p in model.head.parameters()}
    groups = [{"params": [p for p in model.head.parameters() if p.trainable]}]
    for parameter in model.parameters():
        if parameter.trainable and id(parameter) not in ids:
            groups.append({"params": [parameter], "learning_rate": backbone_lr / head_lr})
    return groups
