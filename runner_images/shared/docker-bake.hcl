# The bake file of every template that has none of its own; its target is read by
# `docker buildx bake --print`. No label names the build: equal inputs give an equal image.
variable "BASE_IMAGE" {
  default = "vyvo/base:bookworm"
}

variable "IMAGE" {
  default = "vyvo/runner:dev"
}

variable "MODEL_ID" {
  default = "vyvo/runner"
}

variable "MODEL_VERSION" {
  default = "dev"
}

variable "TEMPLATE" {
  default = ""
}

variable "TEMPLATE_HASH" {
  default = ""
}

variable "PREDICTOR" {
  default = "predict.py:Predictor"
}

variable "GPU_DEVICES" {
  default = "void"
}

group "default" {
  targets = ["runner"]
}

target "runner" {
  context    = "."
  dockerfile = "Dockerfile"
  network    = "none"
  args = {
    BASE_IMAGE  = BASE_IMAGE
    PREDICTOR   = PREDICTOR
    GPU_DEVICES = GPU_DEVICES
  }
  tags = [IMAGE]
  labels = {
    "org.opencontainers.image.title"     = MODEL_ID
    "org.opencontainers.image.version"   = MODEL_VERSION
    "org.opencontainers.image.base.name" = BASE_IMAGE
    "vyvo.template"                      = TEMPLATE
    "vyvo.template.hash"                 = TEMPLATE_HASH
    "vyvo.model"                         = MODEL_ID
    "vyvo.version"                       = MODEL_VERSION
  }
}
